package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/netconf"
)

// folders are the host's, as they are mounted here and as the host itself calls them.
type folders struct {
	bin, conf string
	hostConf  string
}

func (f *folders) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.bin, "cni-bin-dir", "/host/opt/cni/bin", "the runtime's folder of CNI plugins, as mounted here")
	c.Flags().StringVar(&f.conf, "cni-conf-dir", "/host/etc/cni/net.d", "the runtime's folder of network configurations, as mounted here")
	c.Flags().StringVar(&f.hostConf, "host-cni-conf-dir", "/etc/cni/net.d", "the same folder by the name that it has on the host")
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
	removeTaint bool
}

func runCommand() *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run",
		Short: "Install detour, keep it installed and serve it, until told to stop; everything stays in place then",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return o.run(c.Context()) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.config, "config", "/etc/detour/netconf.json", "the plugin's entry in the network's configuration: {\"mesh\": ...}")
	f.StringVar(&o.plugin, "plugin", "/detour", "the plugin's binary")
	f.StringVar(&o.apiServer, "api-server", inClusterServer(), "the API server as the host reaches it")
	f.StringVar(&o.tokenFile, "token-file", "/var/run/secrets/kubernetes.io/serviceaccount/token", "the token that the plugin shows to the API server; it is copied to the host as it changes")
	f.StringVar(&o.caFile, "ca-file", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "the API server's certificate authority")
	f.BoolVar(&o.apiFallback, "api-fallback", true, "let the plugin ask the API server if the agent does not answer; without it no credential is on the host")
	f.StringVar(&o.metrics, "metrics", agent.DefaultMetricsAddr, "where metrics and health are served")
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "where the plugin keeps what it has programmed, and the agent's socket")
	f.StringVar(&o.repair, "repair", string(agent.Report), "what becomes of meshed pods that run without redirection: report, evict or in-place")
	f.BoolVar(&o.removeTaint, "remove-taint", false, "take the taint "+agent.Taint+" off the node once it can serve pods")
	return c
}

// inClusterServer is what every container is told of the API server.
func inClusterServer() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT") //nolint:forbidigo // by the kubelet
	if host == "" {
		return ""
	}
	return "https://" + net.JoinHostPort(host, port)
}

func (o runOptions) run(ctx context.Context) error {
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	entry, err := o.entry()
	if err != nil {
		return err
	}
	conf, err := entry.conf()
	if err != nil {
		return err
	}
	repair, err := agent.ParseRepair(o.repair)
	if err != nil {
		return err
	}
	keeper := &keeper{log: log, options: o, entry: entry, versions: make(chan string, 1), said: map[string]time.Time{}}
	a, err := agent.New(agent.Config{
		Node:          os.Getenv("NODE_NAME"), //nolint:forbidigo // by the DaemonSet
		Options:       conf.Options,
		StateDir:      o.stateDir,
		MetricsAddr:   o.metrics,
		Repair:        repair,
		RemoveTaint:   o.removeTaint,
		Installed:     keeper.installed,
		ConfigVersion: keeper.found,
		Version:       version,
		Log:           log,
	})
	if err != nil {
		return err
	}
	keeper.agent = a
	ctx, stop := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { stop(a.Run(ctx)) })
	parts.Go(func() { stop(keeper.run(ctx)) })
	parts.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// entry is the plugin's entry in the list of plugins, field by field.
type entry map[string]json.RawMessage

// entry reads the configuration and adds what only the agent knows.
func (o runOptions) entry() (entry, error) {
	data, err := os.ReadFile(o.config)
	if err != nil {
		return nil, fmt.Errorf("read the plugin's configuration: %w", err)
	}
	var e entry
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("read the plugin's configuration %s: it is no JSON object: %w", o.config, err)
	}
	if e == nil {
		return nil, fmt.Errorf("read the plugin's configuration %s: it is empty", o.config)
	}
	e.set("type", "detour")
	e.set("stateDir", o.stateDir)
	e.set("agentSocket", filepath.Join(o.stateDir, agent.DefaultSocket))
	if o.apiFallback {
		e.set("kubeconfig", filepath.Join(o.hostConf, install.KubeconfigName))
	}
	return e, nil
}

func (e entry) set(field string, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // strings and lists of them
	}
	e[field] = data
}

// conf checks the entry as the plugin will.
func (e entry) conf() (netconf.Conf, error) {
	data, err := json.Marshal(e)
	if err != nil {
		return netconf.Conf{}, err
	}
	return netconf.Parse(data)
}

// withVersion returns the entry with the one version of the mesh's configuration that is to be asked for.
func (e entry) withVersion(version string) (json.RawMessage, error) {
	proxy := map[string]any{}
	if e["proxy"] != nil {
		if err := json.Unmarshal(e["proxy"], &proxy); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	config, _ := proxy["meshConfig"].(map[string]any)
	if config == nil {
		config = map[string]any{}
	}
	if version != "" {
		config["versions"] = []string{version}
		proxy["meshConfig"] = config
	}
	out := maps.Clone(e)
	if len(proxy) > 0 {
		out.set("proxy", proxy)
	}
	return json.Marshal(out)
}
