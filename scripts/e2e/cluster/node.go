package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/detour-cni/detour/scripts/e2e/machine"
)

// Node is a machine that runs pods.
type Node struct {
	*host
	ip4, ip6 string
	cgroup   machine.Cgroup
}

// newNode makes the cluster's next node, with a disk and a cgroup, that is not booted yet.
func (c *Cluster) newNode(name string) (*Node, error) {
	number := len(c.nodes) + 2
	n := &Node{host: c.newHost(name), ip4: fmt.Sprintf(nodeIP4, number), ip6: fmt.Sprintf(nodeIP6, number)}
	var err error
	if n.cgroup, err = machine.NewCgroup(name); err != nil {
		return nil, err
	}
	c.nodes = append(c.nodes, n)
	return n, n.writeDisk()
}

// boot starts the node's machine and what runs on it, and only waits for containerd, as the kubelet would not.
func (n *Node) boot(ctx context.Context) error {
	if err := n.host.boot(); err != nil {
		return err
	}
	if err := n.connect(ctx); err != nil {
		return err
	}
	if err := n.startAgain(ctx, containerd); err != nil {
		return err
	}
	return n.startAll([]component{n.kubelet(), n.kubeProxy()})
}

// waitUntilReady waits until pods can start.
func (n *Node) waitUntilReady(ctx context.Context) error {
	for _, what := range []component{n.kubelet(), n.kubeProxy()} {
		if err := n.waitFor(ctx, what); err != nil {
			return err
		}
	}
	return n.waitUntilNodeReady(ctx)
}

// waitUntilNodeReady waits until the node has said since its last boot that it is ready, and has no taint of its own.
func (n *Node) waitUntilNodeReady(ctx context.Context) error {
	const state = `{.status.nodeInfo.bootID} {.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`
	want := n.machine.BootID() + " True "
	err := n.poll(ctx, "kubelet", func(ctx context.Context) error {
		out, err := n.get(ctx, state)
		if err == nil && strings.Contains(out, "node.kubernetes.io/") || out[:min(len(out), len(want))] != want {
			err = fmt.Errorf("boot, readiness and taints are %q, want %q", out, want)
		}
		return err
	})
	if err == nil {
		n.cluster.log("%s is ready", n.name)
	}
	return err
}

// get returns what a JSONPath finds in the Node, or why it can't be had.
func (n *Node) get(ctx context.Context, path string) (string, error) {
	out, err := n.cluster.Kubectl(ctx, "get", "node", n.name, "-o", "jsonpath="+path).CombinedOutput()
	return string(out), err
}

// joinFlannel gives the node's pods the range that the controller manager has chosen, over flannel.
func (n *Node) joinFlannel(ctx context.Context) error {
	if err := n.waitFor(ctx, n.kubelet()); err != nil { // it creates the Node
		return err
	}
	if err := n.poll(ctx, "kubelet", func(ctx context.Context) error {
		out, err := n.get(ctx, "{.spec.podCIDR}")
		if _, wrong := netip.ParsePrefix(out); err == nil {
			err = wrong
		}
		return err
	}); err != nil {
		return err
	}
	if err := n.startAgain(ctx, n.flanneld()); err != nil {
		return err
	}
	return n.installFlannelConf(ctx)
}

// subnetFile is what flanneld writes.
const subnetFile = "/run/flannel/subnet.env"

func readSubnet(ctx context.Context, h *host) error { return run(h.shell(ctx, "cat "+subnetFile)) }

// installFlannelConf does what flannel's CNI plugin would: it has bridge use what flanneld has written.
func (n *Node) installFlannelConf(ctx context.Context) error {
	out, err := n.shell(ctx, `. `+subnetFile+`; echo "$FLANNEL_SUBNET $FLANNEL_MTU"`).Output()
	if err != nil {
		return fmt.Errorf("read %s: %w", subnetFile, err)
	}
	var gateway, mtu string
	if _, err := fmt.Sscan(string(out), &gateway, &mtu); err != nil {
		return fmt.Errorf("read %s: %q: %w", subnetFile, out, err)
	}
	subnet, err := netip.ParsePrefix(gateway)
	if err != nil {
		return fmt.Errorf("read %s: %w", subnetFile, err)
	}
	text, err := renderConf("10-flannel.conflist", values{PodRange4: subnet.Masked().String(), MTU: mtu})
	if err != nil {
		return err
	}
	const path = "/etc/cni/net.d/10-flannel.conflist"
	write := n.shell(ctx, "mkdir -p $(dirname "+path+"); cat >"+path+".new; mv "+path+".new "+path)
	write.Stdin = strings.NewReader(text)
	return run(write)
}

// Name is the node's in the API.
func (n *Node) Name() string { return n.name }

// Shell returns a command that runs a script on the node.
func (n *Node) Shell(ctx context.Context, script string) *exec.Cmd { return n.shell(ctx, script) }

// SetProxyMode restarts kube-proxy in a mode, iptables or nftables. It returns when kube-proxy is ready, and has then removed
// the other mode's rules.
func (n *Node) SetProxyMode(ctx context.Context, mode string) error {
	if err := n.stop("kube-proxy"); err != nil {
		return err
	}
	if err := run(n.shell(ctx, "sed -i 's/^mode: .*/mode: "+mode+"/' "+pki+"kube-proxy.yaml")); err != nil {
		return err
	}
	return n.startAgain(ctx, n.kubeProxy())
}
