// Package cluster runs a Kubernetes without Docker: a control machine with etcd, API server, controller manager and scheduler, and
// a node with containerd, kubelet, kube-proxy and the CNI plugin bridge, made of namespaces by package machine. More nodes, which
// flannel connects, can join it. On the host it leaves nothing: the machines' disks and the logs are in one folder.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"time"

	"github.com/detour-cni/detour/scripts/e2e/machine"
)

// Options are what a cluster is made of.
type Options struct {
	Dir      string    // an empty folder for disks and logs; it remains
	Programs string    // the folder of the Kubernetes programs and kubectl
	Plugins  string    // the folder of the CNI plugins bridge, host-local, loopback and portmap
	Pause    string    // a static program that with the argument pause does nothing until it is told to end
	Log      io.Writer // for a line at each step
}

// Cluster is a running cluster. Kubectl and Shell may be used concurrently, the other methods must not.
type Cluster struct {
	options   Options
	before    machine.Snapshot
	began     time.Time
	authority *authority

	control  *host
	node     *Node              // the first
	nodes    []*Node            // also those that were removed
	machines []*machine.Machine // also those that were killed
}

// Start brings a cluster up and returns when its node is ready. When it fails, it has brought everything down again. The
// main function of the program that calls it must begin with machine.IsInit.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o, began: time.Now()}
	err := c.up(ctx)
	if err == nil {
		return c, nil
	}
	if stopErr := c.Stop(); stopErr != nil {
		err = fmt.Errorf("%w; and then: %w", err, stopErr)
	}
	return nil, fmt.Errorf("start cluster: %w", err)
}

func (c *Cluster) up(ctx context.Context) error {
	var err error
	if c.before, err = machine.TakeSnapshot(); err != nil {
		return err
	}
	if err := c.startControl(ctx); err != nil {
		return err
	}
	if c.node, err = c.newNode(nodeName); err != nil {
		return err
	}
	if err := writeConf(c.node.disk("etc/cni/net.d/10-bridge.conflist"), "10-bridge.conflist", values{}); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{c.node.boot, c.node.importPause, c.waitForAPIServer, c.node.waitUntilReady} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startControl(ctx context.Context) error {
	c.control = c.newHost(controlName)
	if err := c.writeControlDisk(); err != nil {
		return err
	}
	if err := c.control.boot(); err != nil {
		return err
	}
	if err := c.connectControl(ctx); err != nil {
		return err
	}
	return c.control.startAll(controlPlane)
}

func (c *Cluster) waitForAPIServer(ctx context.Context) error {
	return c.control.waitFor(ctx, apiServer)
}

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.options.Dir}, elements...)...)
}

// Kubectl returns a kubectl command of the cluster's administrator. Its files are the host's.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--kubeconfig=" + c.control.disk(pki, "admin.conf"), "--cache-dir=" + c.path("kubectl")}, args...)
	cmd := c.control.machine.NetCommand(ctx, filepath.Join(c.options.Programs, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBERC=off") // what this host's user likes
	return cmd
}

// Client returns a command of a program that finds the cluster, as its administrator, by KUBECONFIG. Its files are the host's.
func (c *Cluster) Client(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := c.control.machine.NetCommand(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.control.disk(pki, "admin.conf"))
	return cmd
}

// raw returns the question of a component that is ready if a path of the API server, which passes some on, can be had.
func raw(path string) func(context.Context, *host) error {
	return func(ctx context.Context, h *host) error { return run(h.cluster.Kubectl(ctx, "get", "--raw", path)) }
}

// Shell returns a command that runs a script on the first node.
func (c *Cluster) Shell(ctx context.Context, script string) *exec.Cmd {
	return c.node.shell(ctx, script)
}

// Stop kills the machines, and fails if then anything is left of them but disks and logs.
func (c *Cluster) Stop() error {
	began := time.Now()
	for _, m := range c.machines {
		m.Kill()
	}
	leaks, err := machine.Leaks(c.before, c.options.Dir, c.machines...)
	if leaks != nil {
		err = errors.Join(err, fmt.Errorf("left behind: %s", strings.Join(leaks, "; ")))
	}
	for _, n := range c.nodes {
		err = errors.Join(err, n.cgroup.Remove())
	}
	if err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	c.log("cluster down in %.1f s, nothing left", time.Since(began).Seconds())
	return nil
}

// Memory says how much memory each component of the control machine and the first node has.
func (c *Cluster) Memory() string {
	var each []string
	sum := 0
	for _, h := range []*host{c.control, c.node.host} {
		for _, name := range slices.Sorted(maps.Keys(h.running)) {
			megabytes := h.running[name].MemoryMB()
			sum += megabytes
			each = append(each, fmt.Sprintf("%s %d", name, megabytes))
		}
	}
	return fmt.Sprintf("%d MB: %s", sum, strings.Join(each, ", "))
}

func (c *Cluster) log(format string, args ...any) {
	fmt.Fprintf(c.options.Log, "%6.1f s  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}
