package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// folders are the host's, under their paths here and on the host.
type folders struct {
	bin, conf string
	hostConf  string
}

func (f *folders) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.bin, "cni-bin-dir", "/host/opt/cni/bin", "the runtime's folder of CNI plugins, as mounted here")
	c.Flags().StringVar(&f.conf, "cni-conf-dir", "/host/etc/cni/net.d", "the runtime's folder of network configurations, as mounted here")
}

type runOptions struct {
	folders
	config      string
	plugin      string
	apiServer   string
	tokenFile   string
	caFile      string
	apiFallback bool
	metrics     string
	stateDir    string
	repair      string
	markNode    bool
}

func runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run",
		Short: "Install detour, keep it installed and answer its lookups; a stop leaves everything in place",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return o.run(c.Context()) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.hostConf, "host-cni-conf-dir", "/etc/cni/net.d", "the same folder by the name that it has on the host")
	f.StringVar(&o.config, "config", "/etc/detour/netconf.json", "the plugin's entry in the network's configuration: {\"mesh\": ...}")
	f.StringVar(&o.plugin, "plugin", "/detour", "the plugin's binary")
	f.StringVar(&o.apiServer, "api-server", inClusterServer(), "the API server as the host reaches it")
	f.StringVar(&o.tokenFile, "token-file", defaultTokenFile, "the token that the plugin shows to the API server; it is copied to the host as it changes")
	f.StringVar(&o.caFile, "ca-file", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "the API server's certificate authority")
	f.BoolVar(&o.apiFallback, "api-fallback", true, "let the plugin ask the API server if the agent does not answer; without it no credential is on the host")
	f.StringVar(&o.metrics, "metrics", agent.DefaultMetricsAddr, "where metrics and health are served")
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "folder of the plugin's records and the agent's socket")
	f.StringVar(&o.repair, "repair", string(repair.Report), "what to do with meshed pods that run without redirection: report, evict or in-place")
	f.BoolVar(&o.markNode, "mark-node", false, "label the node "+pod.ReadyLabel+"=true, and remove its taint "+agent.Taint+", once it can serve pods")
	return c
}

// inClusterServer is the API server as the kubelet tells every container.
func inClusterServer() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT") //nolint:forbidigo // by the kubelet
	if host == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(host, port)
}

func (o runOptions) run(ctx context.Context) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	netConf, err := o.netConf()
	if err != nil {
		return err
	}
	keeper := install.NewKeeper(o.installation(), netConf, log)
	conf, err := o.agentConfig(netConf)
	if err != nil {
		return err
	}
	conf.Installed, conf.ConfigVersion, conf.TokenExpiry, conf.Log = keeper.Installed, keeper.Found, keeper.TokenExpiry, log
	a, err := agent.New(conf) //nolint:contextcheck // a scrape has no context
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { stop(a.Run(ctx)) })
	parts.Go(func() { stop(keeper.Run(ctx, a)) })
	parts.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// netConf reads the plugin's net conf and adds what only the agent knows.
func (o runOptions) netConf() (install.NetConf, error) {
	n, err := install.ReadNetConf(o.config)
	if err != nil {
		return nil, err
	}
	n.Set("type", netconf.Type)
	n.Set("stateDir", o.stateDir)
	n.Set("agentSocket", filepath.Join(o.stateDir, agent.DefaultSocket))
	if o.apiFallback {
		n.Set("kubeconfig", filepath.Join(o.hostConf, install.KubeconfigName))
	}
	return n, nil
}

func (o runOptions) installation() install.Config {
	c := install.Config{Plugin: o.plugin, BinDir: o.bin, ConfDir: o.conf}
	if o.apiFallback {
		c.Kubeconfig = &install.Kubeconfig{HostDir: o.hostConf, Server: o.apiServer, CAFile: o.caFile, TokenFile: o.tokenFile}
	}
	return c
}

func (o runOptions) agentConfig(netConf install.NetConf) (agent.Config, error) {
	conf, err := netConf.Parse()
	if err != nil {
		return agent.Config{}, err
	}
	mode, err := repair.ParseMode(o.repair)
	return agent.Config{
		Node:        os.Getenv("NODE_NAME"), //nolint:forbidigo // by the DaemonSet
		Options:     conf.Options,
		StateDir:    o.stateDir,
		MetricsAddr: o.metrics,
		Repair:      mode,
		MarkNode:    o.markNode,
	}, err
}
