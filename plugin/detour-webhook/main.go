// Command detour-webhook is the admission webhook: it takes the mesh's init container out of injected pods, and says at admission what
// ADD would refuse.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/webhook"
	"github.com/detour-cni/detour/pkg/webhook/certificate"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := command(stderr)
	c.SetArgs(args)
	if err := c.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "detour-webhook: "+err.Error())
		return 1
	}
	return 0
}

// options are the flags.
type options struct {
	config, listen, metrics                string
	podIPs                                 []string
	host, namespace, secret, configuration string
	certificate                            string
	drain                                  time.Duration
}

func command(stderr io.Writer) *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:           "detour-webhook",
		Short:         "detour-webhook changes injected pods at admission, and checks what ADD would refuse",
		Version:       build.Get().String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return o.run(c.Context(), stderr) },
	}
	f := c.Flags()
	f.StringVar(&o.config, "config", "/etc/detour/netconf.json", "the net conf, the same as the agent's")
	f.StringVar(&o.listen, "listen", ":10250", "where the API server's requests are served")
	f.StringVar(&o.metrics, "metrics", ":15014", "where metrics and health are served")
	f.StringSliceVar(&o.podIPs, "pod-ips", nil, "the addresses of the webhook's pod: all pods are taken to get addresses of their families")
	f.StringVar(&o.host, "host", "detour-webhook.detour-system.svc", "the host by which the API server knows the webhook: the certificate is for it")
	f.StringVar(&o.namespace, "namespace", "detour-system", "the Secret's namespace")
	f.StringVar(&o.secret, "secret", "detour-webhook", "the Secret with the certificate")
	f.StringVar(&o.configuration, "configuration", "webhook.detour.io", "the webhook configurations, whose caBundle is kept")
	f.StringVar(&o.certificate, "certificate", "self", "who makes the certificate: self, or external (cert-manager), which only reads the Secret")
	f.DurationVar(&o.drain, "drain", 10*time.Second, "for how long to serve on after SIGTERM")
	return c
}

func (o options) run(ctx context.Context, stderr io.Writer) error {
	conf, err := o.webhook(slog.New(slog.NewJSONHandler(stderr, nil)))
	if err != nil {
		return err
	}
	s, err := webhook.New(conf)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func (o options) webhook(log *slog.Logger) (webhook.Config, error) {
	if o.certificate != "self" && o.certificate != "external" {
		return webhook.Config{}, fmt.Errorf("--certificate: %q is neither self nor external", o.certificate)
	}
	addresses, err := parseAddresses(o.podIPs)
	if err != nil {
		return webhook.Config{}, err
	}
	netConf, err := install.ReadNetConf(o.config)
	if err != nil {
		return webhook.Config{}, err
	}
	// Parse wants to know how the plugin looks pods up. The webhook does not look pods up.
	netConf.Set("agentSocket", "none")
	conf, err := netConf.Parse()
	return webhook.Config{
		Options:   conf.Options,
		Addresses: addresses,
		Certificate: certificate.Options{
			Host: o.host, Namespace: o.namespace, Secret: o.secret, Configuration: o.configuration, External: o.certificate == "external",
		},
		Addr:        o.listen,
		MetricsAddr: o.metrics,
		Drain:       o.drain,
		Log:         log,
	}, err
}

func parseAddresses(texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--pod-ips: %w", err)
		}
		out = append(out, a)
	}
	return out, nil
}
