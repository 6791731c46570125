//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/cluster"
	"github.com/detour-cni/detour/scripts/e2e/image"
)

// The rules that let a connection through on the way from a node, or from a pod on it, to a pod of another node, and the one that
// lets its answers through. kube-proxy in iptables mode has the last one itself.
const (
	intoPods    = "-i flannel.1 -d %s -j ACCEPT" // the pods of the server's node
	outOfPods   = "-i cni0 -o flannel.1 -j ACCEPT"
	answersOut  = "-o flannel.1 -m conntrack --ctstate ESTABLISHED -j ACCEPT"
	answersBack = "-i flannel.1 -o cni0 -m conntrack --ctstate ESTABLISHED -j ACCEPT"
)

// Where Docker's policy drops what is forwarded, pods of another node can't be reached through their service until each rule that
// is missing on the way is there.
func TestTheNodesPath(t *testing.T) {
	p := newPath(t)
	p.wantReached(p.near, p.tunnel())
	p.installDocker()
	for _, tt := range []struct {
		mode          string
		onFar, onNear []string // each of them is needed
	}{
		{mode: "iptables", onFar: []string{p.intoPods()}, onNear: []string{outOfPods}},
		{mode: "nftables", onFar: []string{p.intoPods(), answersOut}, onNear: []string{outOfPods, answersBack}},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			p := p.in(t)
			for _, n := range []*cluster.Node{p.near, p.far} {
				must(t, n.SetProxyMode(t.Context(), tt.mode))
			}
			for _, rule := range tt.onFar {
				p.wantDropped(p.near, p.far)
				p.allow(p.far, rule)
			}
			p.wantReached(p.near, p.tunnel()) // masqueraded
			for _, rule := range tt.onNear {
				p.wantDropped(p.client(), p.near)
				p.allow(p.near, rule)
			}
			p.wantReached(p.client(), podIPs(t, p.namespace, "client")[0])
		})
	}
}

// nodePath is a server on the far node, its service, and a pod on the near node.
type nodePath struct {
	t           *testing.T
	namespace   string
	near, far   *cluster.Node
	vip, server string // addresses
}

func newPath(t *testing.T) nodePath {
	t.Helper()
	p := nodePath{t: t}
	p.near, p.far = joinNodes(t)
	p.namespace = newNamespace(t, "nodepath")
	apply(t, manifest(t, "nodepath.yaml", map[string]string{
		"NAMESPACE": p.namespace, "IMAGE": workloadImage, "SERVER_NODE": p.far.Name(), "CLIENT_NODE": p.near.Name(),
	}))
	for _, pod := range []string{"server", "client"} {
		waitReady(t, p.namespace, pod)
	}
	p.server = podIPs(t, p.namespace, "server")[0]
	p.vip = kubectl(t, "get", "service", "--namespace", p.namespace, "server", "-o", "jsonpath={.spec.clusterIP}")
	return p
}

// joinNodes adds two nodes, connected by flannel, that have the workload's image, for the time of the test.
func joinNodes(t *testing.T) (near, far *cluster.Node) {
	t.Helper()
	c, ok := kubernetes.(*cluster.Cluster)
	if !ok {
		t.Skip("no node can join this cluster")
	}
	nodes, err := c.Join(t.Context(), "near-node", "far-node")
	must(t, err)
	t.Cleanup(func() {
		if err := c.Remove(context.Background(), nodes...); err != nil {
			t.Error(err)
		}
	})
	for _, n := range nodes {
		must(t, image.Import(n.Shell(t.Context(), image.ImportScript), workload()))
	}
	return nodes[0], nodes[1]
}

// in is the path in a subtest.
func (p nodePath) in(t *testing.T) nodePath {
	p.t = t
	return p
}

// on runs a script on a node, which must succeed.
func (p nodePath) on(n shells, script string) string {
	p.t.Helper()
	return strings.TrimSpace(mustOutput(p.t, n.Shell(p.t.Context(), script)))
}

// installDocker gives both nodes what Docker programs.
func (p nodePath) installDocker() {
	p.t.Helper()
	rules, err := os.ReadFile("../../testdata/e2e/docker.iptables-save")
	must(p.t, err)
	for _, n := range []*cluster.Node{p.near, p.far} {
		cmd := n.Shell(p.t.Context(), "ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; iptables-restore --noflush")
		cmd.Stdin = strings.NewReader(string(rules))
		mustOutput(p.t, cmd)
	}
}

func (p nodePath) intoPods() string {
	return fmt.Sprintf(intoPods, kubectl(p.t, "get", "node", p.far.Name(), "-o", "jsonpath={.spec.podCIDR}"))
}

// allow appends a rule to the chain FORWARD, for the time of the test.
func (p nodePath) allow(n *cluster.Node, rule string) {
	p.t.Helper()
	p.on(n, "iptables -A FORWARD "+rule)
	p.t.Cleanup(func() {
		if out, err := n.Shell(context.Background(), "iptables -D FORWARD "+rule).CombinedOutput(); err != nil {
			p.t.Errorf("remove %s: %v: %s", rule, err, out)
		}
	})
}

// client is the pod on the near node.
func (p nodePath) client() shells { return inPod{p.near} }

// inPod runs scripts in the network of the only pod of a node.
type inPod struct{ node *cluster.Node }

func (p inPod) Shell(ctx context.Context, script string) *exec.Cmd {
	return p.node.Shell(ctx, "nsenter --net=$(echo /run/netns/cni-*) sh -euc "+strconv.Quote(script))
}

// wantReached wants that a connection to the service is answered and comes through the tunnel with that source.
func (p nodePath) wantReached(from shells, source string) {
	p.t.Helper()
	counted := fmt.Sprintf("PREROUTING -s %s/32 -i flannel.1 -d %s/32", source, p.server)
	p.on(p.far, "iptables -t mangle -A "+counted)
	defer p.on(p.far, "iptables -t mangle -D "+counted)
	eventually(p.t, func() error { // kube-proxy hears of the endpoint in its own time
		got, err := dialFrom(p.t, from, p.vip, 80)
		if err == nil && got != "nginx 80" {
			err = fmt.Errorf("the service answered %q", got)
		}
		return err
	})
	if counts := p.on(p.far, "iptables-save -c -t mangle | grep ' PREROUTING '"); strings.HasPrefix(counts, "[0:") {
		p.t.Errorf("nothing came from %s: %s", source, counts)
	}
}

// tunnel is the address of the near node in the tunnel.
func (p nodePath) tunnel() string {
	p.t.Helper()
	return p.on(p.near, `ip -4 -oneline address show flannel.1 | sed 's|.*inet \([0-9.]*\).*|\1|'`)
}

// wantDropped wants that a connection to the service times out, and that the policy of the node's chain FORWARD drops packets
// meanwhile.
func (p nodePath) wantDropped(from shells, by *cluster.Node) {
	p.t.Helper()
	before := p.dropped(by)
	got, err := dialFrom(p.t, from, p.vip, 80)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 124 {
		p.t.Fatalf("the service answered %q, %v, want that it times out", got, err)
	}
	if after := p.dropped(by); after == before {
		p.t.Errorf("FORWARD of %s still has dropped %d packets", by.Name(), before)
	}
}

// dropped is how many packets the policy of the chain FORWARD has dropped.
func (p nodePath) dropped(by *cluster.Node) int {
	p.t.Helper()
	n, err := strconv.Atoi(p.on(by, `iptables-save -c -t filter | sed -n 's/^:FORWARD DROP \[\([0-9]*\):.*/\1/p'`))
	must(p.t, err)
	return n
}
