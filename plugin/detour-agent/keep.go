package main

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/install"
)

// keeper keeps detour installed, with the version of the mesh's configuration that the agent finds.
type keeper struct {
	log      *slog.Logger
	options  runOptions
	entry    entry
	agent    *agent.Agent
	versions chan string // the newest that was found
	said     map[string]time.Time

	mu      sync.Mutex
	missing error // nil once installed
	known   bool  // whether anything is known yet
}

// found takes a version without blocking; of two that nobody has taken yet the newer stays.
func (k *keeper) found(version string) {
	for {
		select {
		case k.versions <- version:
			return
		case <-k.versions:
		}
	}
}

func (k *keeper) installed() (bool, string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.known {
		return false, "the first look at the host is not done yet"
	}
	if k.missing != nil {
		return false, k.missing.Error()
	}
	return true, ""
}

// run installs, and installs anew whenever another version was found, until ctx ends.
func (k *keeper) run(ctx context.Context) error {
	version := ""
	for ctx.Err() == nil {
		installer, err := k.installer(version)
		if err != nil {
			return err
		}
		round, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { installer.Run(round, k.state) })
		select {
		case version = <-k.versions:
		case <-ctx.Done():
		}
		stop()
		running.Wait()
	}
	return nil
}

func (k *keeper) installer(version string) (*install.Installer, error) {
	o := k.options
	entry, err := k.entry.withVersion(version)
	if err != nil {
		return nil, err
	}
	c := install.Config{Plugin: o.plugin, BinDir: o.bin, ConfDir: o.conf, Entry: entry}
	if o.apiFallback {
		c.Kubeconfig = &install.Kubeconfig{HostDir: o.hostConf, Server: o.apiServer, CAFile: o.caFile, TokenFile: o.tokenFile}
	}
	return install.New(c)
}

// state takes what a round of the installer found: into the log and the metrics what was done, for readiness what is missing.
// Somebody else may change what is installed several times a second, so the log has the same news once a minute.
func (k *keeper) state(s install.State) {
	for _, c := range s.Changes {
		k.agent.CountInstall(string(c.Part))
		if c.Rival == 0 {
			k.log.Info("installed", "part", c.Part, "file", c.File, "reason", c.Reason)
			continue
		}
		k.agent.CountConflict()
		if k.isNews(c.File) {
			k.log.Warn("somebody else had changed what is installed: it was put right; find out who writes it",
				"part", c.Part, "file", c.File, "reason", c.Reason, "times", c.Rival)
		}
	}
	if s.Err != nil && k.isNews(s.Err.Error()) {
		k.log.Warn("not installed", "error", s.Err.Error())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.missing, k.known = s.Err, true
}

// isNews says whether something was not said within the last minute, and takes it for said.
func (k *keeper) isNews(what string) bool {
	now := time.Now()
	maps.DeleteFunc(k.said, func(_ string, when time.Time) bool { return now.Sub(when) >= time.Minute })
	if _, ok := k.said[what]; ok {
		return false
	}
	k.said[what] = now
	return true
}
