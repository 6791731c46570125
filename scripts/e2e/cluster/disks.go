package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

// writeDisks writes what the machines find on their disks when they start for the first time.
func (c *Cluster) writeDisks() error {
	for _, folder := range []string{"cni", "containerd", "kubernetes"} {
		if err := c.hideHosts(nodeName, "etc", folder); err != nil {
			return err
		}
	}
	if err := c.hideHosts("control", pki); err != nil {
		return err
	}
	if err := c.writeKeys(); err != nil {
		return err
	}
	for path, conf := range map[string]string{
		"etc/containerd/config.toml":       "containerd.toml",
		"etc/cni/net.d/10-bridge.conflist": "10-bridge.conflist",
		"etc/kubernetes/kube-proxy.yaml":   "kube-proxy.yaml",
		"var/lib/kubelet/config.yaml":      "kubelet.yaml",
	} {
		if err := c.writeConf(c.path(nodeName, path), conf, values{CgroupRoot: c.cgroup.Path()}); err != nil {
			return err
		}
	}
	return c.copyPlugins("bridge", "host-local", "loopback", "portmap")
}

// hideHosts makes a folder in a machine's /etc that doesn't show what the host has there.
func (c *Cluster) hideHosts(elements ...string) error {
	path := c.path(elements...)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if err := unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("make %s opaque: %w", path, err)
	}
	return nil
}

// writeKeys writes keys, certificates and, for each client, a kubeconfig.
func (c *Cluster) writeKeys() error {
	a, err := newAuthority()
	if err != nil {
		return err
	}
	for disk, subjects := range map[string][]subject{"control": controlSubjects, nodeName: nodeSubjects} {
		if err := a.issue(c.path(disk, pki), subjects...); err != nil {
			return err
		}
		for _, s := range subjects {
			if err := c.writeConf(c.path(disk, pki, s.file+".conf"), "kubeconfig", values{User: s.file}); err != nil {
				return err
			}
		}
	}
	_, err = writeKey(c.path("control", pki, "serviceaccount.key"))
	return err
}

func (c *Cluster) copyPlugins(names ...string) error {
	bin := c.path(nodeName, "opt/cni/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(c.options.Plugins, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(bin, name), content, 0o755)
		}
		if err != nil {
			return fmt.Errorf("install CNI plugin: %w", err)
		}
	}
	return nil
}

// importPause imports the image of the container that holds a pod's network.
func (c *Cluster) importPause(ctx context.Context) error {
	pause := image.Image{
		Name:       "detour.test/pause:1",
		Files:      []image.File{{Path: "/workload", From: c.options.Pause}},
		Entrypoint: []string{"/workload", "pause"},
	}
	return image.Import(c.Shell(ctx, image.ImportScript), pause)
}

// connectControl gives the control machine its addresses: on a bridge, which is there also while the node is not.
func (c *Cluster) connectControl(ctx context.Context) error {
	return run(c.control.Command(ctx, "sh", "-euc", fmt.Sprintf(`
		ip link set lo up
		ip link add lan type bridge
		ip addr add %s/24 dev lan
		ip addr add %s/64 dev lan nodad
		ip link set lan up`, controlIP4, controlIP6)))
}

// connectNode links the node to the bridge and makes it a router.
func (c *Cluster) connectNode(ctx context.Context) error {
	if err := c.control.Link(ctx, nodeName, c.node); err != nil {
		return err
	}
	return errors.Join(
		run(c.control.Command(ctx, "ip", "link", "set", nodeName, "master", "lan", "up")),
		run(c.node.Command(ctx, "sh", "-euc", fmt.Sprintf(`
			ip link set lo up
			ip addr add %s/24 dev eth0
			ip addr add %s/64 dev eth0 nodad
			ip link set eth0 up
			ip route add default via %s
			ip route add default via %s
			echo 1 >/proc/sys/net/ipv4/ip_forward
			echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`, nodeIP4, nodeIP6, controlIP4, controlIP6))),
	)
}

// run runs a command, whose output is of interest only if it fails.
func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %q: %w: %s", cmd.Args, err, out)
	}
	return nil
}
