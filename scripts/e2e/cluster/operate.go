package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// How long a component may take to be ready on a busy machine, and how long to wait before asking again.
const (
	readyTime = 2 * time.Minute
	pollTime  = 100 * time.Millisecond
)

// ready are the questions whether a component is ready: an error is no.
var ready = map[string]func(*Cluster, context.Context) error{
	"containerd": (*Cluster).askContainerd,
	apiServer:    raw("/readyz"),
	"kubelet":    raw("/api/v1/nodes/" + nodeName + "/proxy/healthz"),
	"kube-proxy": raw("/api/v1/nodes/" + nodeName + ":10256/proxy/healthz"),
}

// raw asks for a path of the API server, which passes some on.
func raw(path string) func(*Cluster, context.Context) error {
	return func(c *Cluster, ctx context.Context) error { return run(c.Kubectl(ctx, "get", "--raw", path)) }
}

// waitFor waits until a component is ready, if one can tell.
func (c *Cluster) waitFor(ctx context.Context, name string) error {
	question := ready[name]
	if question == nil {
		return nil
	}
	err := c.poll(ctx, name, func(ctx context.Context) error { return question(c, ctx) })
	if err == nil {
		c.log("%s is ready", name)
	}
	return err
}

// poll asks until there is no error, but not for long, and not when the component has ended.
func (c *Cluster) poll(ctx context.Context, name string, question func(context.Context) error) error {
	deadline := time.Now().Add(readyTime)
	for {
		err := question(ctx)
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		c.mu.Lock()
		p := c.running[name]
		c.mu.Unlock()
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

// waitUntilReady waits until pods can start.
func (c *Cluster) waitUntilReady(ctx context.Context) error {
	for _, name := range []string{apiServer, "kubelet", "kube-proxy"} {
		if err := c.waitFor(ctx, name); err != nil {
			return err
		}
	}
	return c.waitUntilNodeReady(ctx)
}

// waitUntilNodeReady waits until the node has said since its last boot that it is ready, and has no taint of its own.
func (c *Cluster) waitUntilNodeReady(ctx context.Context) error {
	const state = `{.status.nodeInfo.bootID} {.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`
	want := c.node.BootID() + " True "
	err := c.poll(ctx, "kubelet", func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "get", "node", nodeName, "-o", "jsonpath="+state).CombinedOutput()
		if err == nil && strings.Contains(string(out), "node.kubernetes.io/") || string(out)[:min(len(out), len(want))] != want {
			err = fmt.Errorf("boot, readiness and taints are %q, want %q", out, want)
		}
		return err
	})
	if err == nil {
		c.log("the node is ready")
	}
	return err
}

// Restart stops a component and starts it again. Processes that the component has started, such as containerd's pods, go on.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	if err := c.stop(name); err != nil {
		return err
	}
	return c.startAgain(ctx, name)
}

// StopAPIServer leaves pods, kubelet and everything else as they are.
func (c *Cluster) StopAPIServer() error { return c.stop(apiServer) }

// StartAPIServer returns when the API server is ready again.
func (c *Cluster) StartAPIServer(ctx context.Context) error { return c.startAgain(ctx, apiServer) }

// Reboot takes the node's power away and boots it again: processes, pods, network and /run are gone, the disk is as it
// was. It returns when the node is ready again; its pods may not be yet.
func (c *Cluster) Reboot(ctx context.Context) error {
	c.node.Kill()
	if err := c.cgroup.Renew(); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	if err := c.bootNode(ctx); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	return c.waitUntilReady(ctx)
}

func (c *Cluster) stop(name string) error {
	c.mu.Lock()
	p := c.running[name]
	c.mu.Unlock()
	if p == nil {
		return fmt.Errorf("stop %s: there is no such component", name)
	}
	p.Stop()
	return nil
}

func (c *Cluster) startAgain(ctx context.Context, name string) error {
	on, components := c.control, controlPlane
	i := slices.IndexFunc(components, func(each component) bool { return each.name == name })
	if i < 0 {
		on, components = c.node, nodePrograms
		i = slices.IndexFunc(components, func(each component) bool { return each.name == name })
	}
	if err := c.start(on, components[i]); err != nil {
		return err
	}
	return c.waitFor(ctx, name)
}
