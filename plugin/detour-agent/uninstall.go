package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// defaultTokenFile is where the kubelet keeps the ServiceAccount's token.
const defaultTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

type uninstallOptions struct {
	folders
	stateDir, cacheDir string
	once, wait         bool
	unmarkNode         bool
	pause              time.Duration
}

func uninstallCommand() *cobra.Command {
	o := uninstallOptions{pause: 5 * time.Second}
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Uninstall detour from this node: its entry in the network's configuration at once, its binary once the last pod that was started with it has ended",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return o.run(c.Context(), c.ErrOrStderr()) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "folder of the plugin's records")
	f.StringVar(&o.cacheDir, "cni-cache-dir", "/host/var/lib/cni/results", "where the runtime keeps its attachments, as mounted here")
	f.BoolVar(&o.once, "once", false, "do what can be done now; leave the binary if pods still need it")
	f.BoolVar(&o.unmarkNode, "unmark-node", false, "first take the label "+pod.ReadyLabel+" off the node, and wait until no pod there selects it")
	f.BoolVar(&o.wait, "wait", false, "keep running afterwards, as a DaemonSet's container must")
	return c
}

// run uninstalls, and then waits if --wait says so.
func (o uninstallOptions) run(ctx context.Context, stderr io.Writer) error {
	i, err := install.New(install.Config{
		BinDir: o.bin, ConfDir: o.conf, StateDir: o.stateDir, CacheDir: o.cacheDir, Entry: []byte(`{"type":"` + netconf.Type + `"}`),
	})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	if o.unmarkNode {
		renew := func() error { return i.RenewToken(defaultTokenFile) }
		//nolint:forbidigo // by the DaemonSet
		if err := agent.Unmark(ctx, "", os.Getenv("NODE_NAME"), log, renew); err != nil {
			return err
		}
	}
	done, err := i.UninstallAll(ctx, log, install.UninstallOptions{Once: o.once, Pause: o.pause, Socket: agent.DefaultSocket})
	if done && o.wait {
		<-ctx.Done()
	}
	return err
}
