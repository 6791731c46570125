// Package cluster runs a Kubernetes of one node without Docker: a control machine with etcd, API server, controller manager
// and scheduler, and a node with containerd, kubelet, kube-proxy and the CNI plugin bridge, both made of namespaces by
// package machine. On the host it leaves nothing: the machines' disks and the logs are in one folder.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
	options Options
	before  machine.Snapshot
	began   time.Time
	cgroup  machine.Cgroup

	control, node *machine.Machine
	machines      []*machine.Machine // also those that were killed

	mu      sync.Mutex
	running map[string]*machine.Process
}

// Start brings a cluster up and returns when its node is ready. When it fails, it has brought everything down again. The
// main function of the program that calls it must begin with machine.IsInit.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o, began: time.Now(), running: map[string]*machine.Process{}}
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
	if c.cgroup, err = machine.NewCgroup(); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("logs"), 0o755); err != nil {
		return err
	}
	if err := c.writeDisks(); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{c.startControl, c.bootNode, c.importPause, c.waitUntilReady} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) startControl(ctx context.Context) (err error) {
	if c.control, err = machine.Start("control", c.path("control")); err != nil {
		return err
	}
	c.machines = append(c.machines, c.control)
	if err := c.connectControl(ctx); err != nil {
		return err
	}
	return c.startAll(c.control, controlPlane)
}

// bootNode starts the node's machine and what runs on it, and only waits for containerd, as the kubelet would not.
func (c *Cluster) bootNode(ctx context.Context) (err error) {
	if c.node, err = machine.Start(nodeName, c.path(nodeName)); err != nil {
		return err
	}
	c.machines = append(c.machines, c.node)
	if err := c.connectNode(ctx); err != nil {
		return err
	}
	containerd, others := nodePrograms[0], nodePrograms[1:]
	if err := c.start(c.node, containerd); err != nil {
		return err
	}
	if err := c.waitFor(ctx, containerd.name); err != nil {
		return err
	}
	return c.startAll(c.node, others)
}

func (c *Cluster) startAll(on *machine.Machine, components []component) error {
	for _, each := range components {
		if err := c.start(on, each); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) start(on *machine.Machine, what component) error {
	program := filepath.Join(c.options.Programs, what.name)
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath(what.name); err != nil {
			return fmt.Errorf("find %s: %w", what.name, err)
		}
	}
	p, err := on.StartProcess(c.path("logs", what.name+".log"), program, what.args...)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[what.name] = p
	return nil
}

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.options.Dir}, elements...)...)
}

// Kubectl returns a kubectl command of the cluster's administrator. Its files are the host's.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--kubeconfig=" + c.path("control", pki, "admin.conf"), "--cache-dir=" + c.path("kubectl")}, args...)
	cmd := c.control.NetCommand(ctx, filepath.Join(c.options.Programs, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBERC=off") // what this host's user likes
	return cmd
}

// Shell returns a command that runs a script on the node.
func (c *Cluster) Shell(ctx context.Context, script string) *exec.Cmd {
	return c.node.Command(ctx, "sh", "-euc", script)
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
	if err = errors.Join(err, c.cgroup.Remove()); err != nil {
		return fmt.Errorf("stop cluster: %w", err)
	}
	c.log("cluster down in %.1f s, nothing left", time.Since(began).Seconds())
	return nil
}

// Memory says how much memory each component has.
func (c *Cluster) Memory() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var each []string
	sum := 0
	for _, what := range append(append([]component{}, controlPlane...), nodePrograms...) {
		if p := c.running[what.name]; p != nil {
			sum += p.MemoryMB()
			each = append(each, fmt.Sprintf("%s %d", what.name, p.MemoryMB()))
		}
	}
	return fmt.Sprintf("%d MB: %s", sum, strings.Join(each, ", "))
}

func (c *Cluster) log(format string, args ...any) {
	fmt.Fprintf(c.options.Log, "%6.1f s  %s\n", time.Since(c.began).Seconds(), fmt.Sprintf(format, args...))
}
