package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/detour-cni/detour/scripts/e2e/machine"
)

// How long a component may take to be ready on a busy machine, and how long to wait before asking again.
const (
	readyTime = 2 * time.Minute
	pollTime  = 100 * time.Millisecond
)

// host is a machine and what runs on it.
type host struct {
	cluster *Cluster
	name    string
	machine *machine.Machine // of the last boot

	mu      sync.Mutex
	running map[string]*machine.Process
}

func (c *Cluster) newHost(name string) *host {
	return &host{cluster: c, name: name, running: map[string]*machine.Process{}}
}

// disk is the path of a file that the machine's disk holds.
func (h *host) disk(elements ...string) string {
	return h.cluster.path(append([]string{h.name}, elements...)...)
}

func (h *host) boot() (err error) {
	if err := os.MkdirAll(h.cluster.path("logs", h.name), 0o755); err != nil {
		return err
	}
	if h.machine, err = machine.Start(h.name, h.disk()); err != nil {
		return err
	}
	h.cluster.machines = append(h.cluster.machines, h.machine)
	return nil
}

// shell returns a command that runs a script in the machine.
func (h *host) shell(ctx context.Context, script string) *exec.Cmd {
	return h.machine.Command(ctx, "sh", "-euc", script)
}

func (h *host) startAll(components []component) error {
	for _, each := range components {
		if err := h.start(each); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) start(what component) error {
	program := filepath.Join(h.cluster.options.Programs, what.name)
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath(what.name); err != nil {
			return fmt.Errorf("find %s: %w", what.name, err)
		}
	}
	p, err := h.machine.StartProcess(h.cluster.path("logs", h.name, what.name+".log"), what.env, program, what.args...)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running[what.name] = p
	return nil
}

func (h *host) stop(name string) error {
	p := h.process(name)
	if p == nil {
		return fmt.Errorf("stop %s: there is no such component", name)
	}
	p.Stop()
	return nil
}

func (h *host) process(name string) *machine.Process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running[name]
}

// startAgain starts a component and returns when it is ready.
func (h *host) startAgain(ctx context.Context, what component) error {
	if err := h.start(what); err != nil {
		return err
	}
	return h.waitFor(ctx, what)
}

// waitFor waits until a component is ready, if one can tell.
func (h *host) waitFor(ctx context.Context, what component) error {
	if what.ready == nil {
		return nil
	}
	err := h.poll(ctx, what.name, func(ctx context.Context) error { return what.ready(ctx, h) })
	if err == nil {
		h.cluster.log("%s of %s is ready", what.name, h.name)
	}
	return err
}

// poll asks until there is no error, but not for long, and not when the component has ended.
func (h *host) poll(ctx context.Context, name string, question func(context.Context) error) error {
	deadline := time.Now().Add(readyTime)
	for {
		err := question(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		p := h.process(name)
		select {
		case <-p.Ended():
			return fmt.Errorf("%s has ended; %s", name, p.Tail())
		case <-time.After(pollTime):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %w; %s", name, readyTime, err, p.Tail())
		}
	}
}
