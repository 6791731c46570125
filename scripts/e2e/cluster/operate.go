package cluster

import (
	"context"
	"errors"
	"fmt"
)

// Join adds nodes that are connected by flannel, and returns when they are ready. They have no images.
func (c *Cluster) Join(ctx context.Context, names ...string) ([]*Node, error) {
	var joined []*Node
	for _, name := range names {
		n, err := c.newNode(name)
		if err == nil {
			err = n.boot(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("join %s: %w", name, err)
		}
		joined = append(joined, n)
	}
	for _, prepare := range []func(*Node, context.Context) error{(*Node).importPause, (*Node).joinFlannel, (*Node).waitUntilReady} {
		for _, n := range joined {
			if err := prepare(n, ctx); err != nil {
				return nil, fmt.Errorf("join %s: %w", n.name, err)
			}
		}
	}
	return joined, nil
}

// Remove takes the power of nodes away that joined, and removes them and their pods from the API.
func (c *Cluster) Remove(ctx context.Context, nodes ...*Node) error {
	var errs []error
	for _, n := range nodes {
		n.machine.Kill()
		errs = append(errs,
			n.cgroup.Remove(),
			run(c.Kubectl(ctx, "delete", "node", n.name)),
			run(c.Kubectl(ctx, "delete", "pods", "--all-namespaces", "--field-selector=spec.nodeName="+n.name, "--force")),
		)
	}
	return errors.Join(errs...)
}

// Restart stops a component of the first node and starts it again. Processes that the component has started, such as
// containerd's pods, go on.
func (c *Cluster) Restart(ctx context.Context, name string) error {
	for _, what := range []component{containerd, c.node.kubelet(), c.node.kubeProxy()} {
		if what.name != name {
			continue
		}
		if err := c.node.stop(name); err != nil {
			return err
		}
		return c.node.startAgain(ctx, what)
	}
	return fmt.Errorf("restart %s: there is no such component", name)
}

// StopAPIServer leaves pods, kubelet and everything else as they are.
func (c *Cluster) StopAPIServer() error { return c.control.stop(apiServer.name) }

// StartAPIServer returns when the API server is ready again.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	return c.control.startAgain(ctx, apiServer)
}

// Reboot takes the first node's power away and boots it again: processes, pods, network and /run are gone, the disk is as it
// was. It returns when the node is ready again; its pods may not be yet.
func (c *Cluster) Reboot(ctx context.Context) error {
	c.node.machine.Kill()
	if err := c.node.cgroup.Renew(); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	if err := c.node.boot(ctx); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}

	return c.node.waitUntilReady(ctx)
}
