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

// writeControlDisk writes what the control machine finds on its disk when it starts for the first time.
func (c *Cluster) writeControlDisk() (err error) {
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	if err := c.control.hideHosts(pki); err != nil {
		return err
	}
	if err := c.control.writeKeys(controlSubjects); err != nil {
		return err
	}
	_, err = writeKey(c.control.disk(pki, "serviceaccount.key"))
	return err
}

// writeDisk writes what the node finds on its disk when it starts for the first time.
func (n *Node) writeDisk() error {
	for _, folder := range []string{"cni", "containerd", "kubernetes"} {
		if err := n.hideHosts("etc", folder); err != nil {
			return err
		}
	}
	if err := n.writeKeys(n.subjects()); err != nil {
		return err
	}
	for path, conf := range map[string]string{
		"etc/containerd/config.toml":     "containerd.toml",
		"etc/kubernetes/kube-proxy.yaml": "kube-proxy.yaml",
		"etc/kubernetes/net-conf.json":   "net-conf.json",
		"var/lib/kubelet/config.yaml":    "kubelet.yaml",
	} {
		if err := writeConf(n.disk(path), conf, values{CgroupRoot: n.cgroup.Path()}); err != nil {
			return err
		}
	}
	return n.copyPlugins("bridge", "host-local", "loopback", "portmap")
}

// hideHosts makes a folder in a machine's /etc that doesn't show what the host has there.
func (h *host) hideHosts(elements ...string) error {
	path := h.disk(elements...)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	if err := unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("make %s opaque: %w", path, err)
	}
	return nil
}

// writeKeys writes keys, certificates and, for each client, a kubeconfig.
func (h *host) writeKeys(subjects []subject) error {
	if err := h.cluster.authority.issue(h.disk(pki), subjects...); err != nil {
		return err
	}
	for _, s := range subjects {
		if err := writeConf(h.disk(pki, s.file+".conf"), "kubeconfig", values{User: s.file}); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) copyPlugins(names ...string) error {
	bin := n.disk("opt/cni/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(n.cluster.options.Plugins, name))
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
func (n *Node) importPause(ctx context.Context) error {
	pause := image.Image{
		Name:       "detour.test/pause:1",
		Files:      []image.File{{Path: "/workload", From: n.cluster.options.Pause}},
		Entrypoint: []string{"/workload", "pause"},
	}
	return image.Import(n.shell(ctx, image.ImportScript), pause)
}

// connectControl gives the control machine its addresses: on a bridge, which is there also while the nodes are not.
func (c *Cluster) connectControl(ctx context.Context) error {
	return run(c.control.shell(ctx, fmt.Sprintf(`
		ip link set lo up
		ip link add lan type bridge
		ip addr add %s/24 dev lan
		ip addr add %s/64 dev lan nodad
		ip link set lan up
		ip route add %s via %s`, controlIP4, controlIP6, serviceRange4, fmt.Sprintf(nodeIP4, 2))))
}

// connect links the node to the bridge and makes it a router.
func (n *Node) connect(ctx context.Context) error {
	control := n.cluster.control
	if err := control.machine.Link(ctx, n.name, n.machine); err != nil {
		return err
	}
	return errors.Join(
		run(control.shell(ctx, "ip link set "+n.name+" master lan up")),
		run(n.shell(ctx, fmt.Sprintf(`
			ip link set lo up
			ip addr add %s/24 dev eth0
			ip addr add %s/64 dev eth0 nodad
			ip link set eth0 up
			ip route add default via %s
			ip route add default via %s
			echo 1 >/proc/sys/net/ipv4/ip_forward
			echo 1 >/proc/sys/net/ipv6/conf/all/forwarding`, n.ip4, n.ip6, controlIP4, controlIP6))),
	)
}

// run runs a command, whose output is of interest only if it fails.
func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %q: %w: %s", cmd.Args, err, out)
	}
	return nil
}
