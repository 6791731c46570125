package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/netconf"
)

type uninstallOptions struct {
	folders
	stateDir, cacheDir string
	once, wait         bool
	pause              time.Duration
}

func uninstallCommand() *cobra.Command {
	o := uninstallOptions{pause: 5 * time.Second}
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take detour off this node: its entry in the network's configuration first, its binary after the last pod that was started with it",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return o.run(c.Context(), c.ErrOrStderr()) },
	}
	o.flags(c)
	f := c.Flags()
	f.StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "where the plugin keeps what it has programmed")
	f.StringVar(&o.cacheDir, "cni-cache-dir", "/host/var/lib/cni/results", "where the runtime keeps its attachments, as mounted here")
	f.BoolVar(&o.once, "once", false, "do what can be done now, and leave the binary if it is needed for pods to end")
	f.BoolVar(&o.wait, "wait", false, "stay afterwards until told to stop, as a DaemonSet's container has to")
	return c
}

// run uninstalls again and again until nothing is left. If it is told to stop before, the binary stays, which does no harm, and
// another run goes on.
func (o uninstallOptions) run(ctx context.Context, stderr io.Writer) error {
	i, err := install.New(install.Config{
		BinDir: o.bin, ConfDir: o.conf, StateDir: o.stateDir, CacheDir: o.cacheDir, Entry: []byte(`{"type":"detour"}`),
	})
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	var said []string
	for {
		pods, err := i.Uninstall()
		if err != nil {
			return err
		}
		if len(pods) == 0 {
			break
		}
		if !slices.Equal(pods, said) {
			log.Info("no pod starts with detour any more; its binary stays until these pods have ended, as the runtime may call it then", "pods", pods)
			said = pods
		}
		if o.once || stopped(ctx, o.pause) {
			return nil
		}
	}
	if err := removeState(o.stateDir); err != nil {
		return err
	}
	log.Info("detour is off this node")
	if o.wait {
		<-ctx.Done()
	}
	return nil
}

// stopped waits, and returns true if the context ends meanwhile.
func stopped(ctx context.Context, pause time.Duration) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(pause):
		return false
	}
}

// removeState removes what the plugin and the agent have in their folder, and the folder unless it has something else or is
// mounted here.
func removeState(dir string) error {
	var failed error
	for _, name := range []string{"attachments", "namespaces", agent.DefaultSocket} {
		failed = errors.Join(failed, os.RemoveAll(filepath.Join(dir, name)))
	}
	_ = os.Remove(dir)
	return failed
}
