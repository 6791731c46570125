//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/cluster"
	"github.com/detour-cni/detour/scripts/e2e/image"
)

// Where Docker's policy drops what is forwarded, pods of another node can't be reached through their service. detourctl trace says
// so of each packet that is dropped, and the rule that it advises lets it through.
func TestTheNodesPath(t *testing.T) {
	installDetour(t)
	p := newPath(t)
	p.wantReached(p.near, p.tunnel)
	t.Run("ready nodes", p.wantNoPodWhereDetourIsNot)
	p.wantMeshedPods()
	p.installDocker()
	for _, kubeProxy := range []struct {
		mode        string
		answersPass bool // by a rule of its own
	}{{"iptables", true}, {"nftables", false}} {
		t.Run(kubeProxy.mode, func(t *testing.T) {
			p := p.in(t)
			for _, n := range []*cluster.Node{p.near, p.far} {
				must(t, n.SetProxyMode(t.Context(), kubeProxy.mode))
			}

			// From the near node.
			p.wantDropped(p.near, p.far)
			p.wantLeaves()
			p.takeAdvice(p.far, "--in=flannel.1", "--from="+p.tunnel, "--to="+p.server+":80")
			if !kubeProxy.answersPass {
				p.wantDropped(p.near, p.far)
				p.takeAdvice(p.far, "--in=cni0", "--from="+p.server+":80", "--to="+p.tunnel+":40000", "--state=established")
			}
			p.wantReached(p.near, p.tunnel)

			// From its pod.
			p.wantDropped(p.inClient(), p.near)
			p.takeAdvice(p.near, "--in=cni0", "--from="+p.client, "--to="+p.vip+":80")
			if !kubeProxy.answersPass {
				p.wantDropped(p.inClient(), p.near)
				p.takeAdvice(p.near, "--in=flannel.1", "--from="+p.server+":80", "--to="+p.client+":40000", "--state=established")
			}
			p.wantReached(p.inClient(), p.client)
		})
	}
}

// nodePath is a server on the far node, its service, and a pod on the near node.
type nodePath struct {
	t                           *testing.T
	near, far                   *cluster.Node
	server, client, vip, tunnel string // addresses; tunnel is the near node's in the tunnel
}

func newPath(t *testing.T) nodePath {
	t.Helper()
	p := nodePath{t: t}
	p.near, p.far = joinNodes(t)
	namespace := newNamespace(t, "nodepath")
	apply(t, manifest(t, "nodepath.yaml", map[string]string{
		"NAMESPACE": namespace, "IMAGE": workloadImage, "SERVER_NODE": p.far.Name(), "CLIENT_NODE": p.near.Name(),
	}))
	for _, pod := range []string{"server", "client"} {
		waitReady(t, namespace, pod)
	}
	p.server = podIPs(t, namespace, "server")[0]
	p.client = podIPs(t, namespace, "client")[0]
	p.vip = kubectl(t, "get", "service", "--namespace", namespace, "server", "-o", "jsonpath={.spec.clusterIP}")
	p.tunnel = p.on(p.near, `ip -4 -oneline address show flannel.1 | sed 's|.*inet \([0-9.]*\).*|\1|'`)
	return p
}

// joinNodes adds two nodes, connected by flannel, that have the workload's image and detourctl, for the time of the test.
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
	detourctl, err := os.ReadFile(filepath.Join(folder("BIN"), "detourctl"))
	must(t, err)
	for _, n := range nodes {
		must(t, image.Import(n.Shell(t.Context(), image.ImportScript), workload()))
		cmd := n.Shell(t.Context(), "cat >/opt/detourctl; chmod +x /opt/detourctl")
		cmd.Stdin = strings.NewReader(string(detourctl))
		mustOutput(t, cmd)
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

// inClient runs scripts in the network of the pod on the near node, which is the only one.
func (p nodePath) inClient() shells { return onlyPod{p.near} }

type onlyPod struct{ node *cluster.Node }

func (o onlyPod) Shell(ctx context.Context, script string) *exec.Cmd {
	return o.node.Shell(ctx, "nsenter --net=$(echo /run/netns/cni-*) sh -euc "+strconv.Quote(script))
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

// traced is what detourctl trace answers.
type traced struct {
	Ways []struct {
		Verdict string
		At      struct {
			Table, Chain string
			Policy       bool
		}
		Packet struct{ From, To, Interface string }
	}
	Advice string
}

// trace traces a packet on a node or in one of its pods; it must have one way.
func (p nodePath) trace(n *cluster.Node, args ...string) (answer traced) {
	p.t.Helper()
	out, err := output(n.Shell(p.t.Context(), "/opt/detourctl trace -o json "+strings.Join(args, " ")))
	if jsonErr := json.Unmarshal([]byte(out), &answer); jsonErr != nil || len(answer.Ways) != 1 {
		p.t.Fatalf("trace on %s with %q: %v: %v, %s, want one way", n.Name(), args, err, jsonErr, out)
	}
	return answer
}

// wantLeaves wants that trace sends a packet to the service from the near node's tunnel to the server.
func (p nodePath) wantLeaves() {
	p.t.Helper()
	way := p.trace(p.near, "--node", "--out", "--to="+p.vip+":80").Ways[0]
	from, _, _ := strings.Cut(way.Packet.From, ":")
	if way.Verdict != "accepted" || from != p.tunnel || way.Packet.To != p.server+":80" || way.Packet.Interface != "flannel.1" {
		p.t.Errorf("trace on the near node: %+v, want that it goes from %s to %s port 80 by flannel.1", way, p.tunnel, p.server)
	}
}

var advisedRule = regexp.MustCompile("`(iptables -A FORWARD [^`]*)`")

// takeAdvice wants that trace says of a packet that the policy of FORWARD drops it, and does what it advises, for the time of the
// test.
func (p nodePath) takeAdvice(n *cluster.Node, packet ...string) {
	p.t.Helper()
	answer := p.trace(n, append(packet, "--node")...)
	way := answer.Ways[0]
	rule := advisedRule.FindStringSubmatch(answer.Advice)
	if way.Verdict != "dropped" || way.At.Table != "filter" || way.At.Chain != "FORWARD" || !way.At.Policy || rule == nil {
		p.t.Fatalf("trace on %s with %q: %+v, want that FORWARD's policy drops it and a rule is advised", n.Name(), packet, answer)
	}
	p.on(n, rule[1])
	p.t.Cleanup(func() {
		undo := strings.Replace(rule[1], "-A", "-D", 1)
		if out, err := n.Shell(context.Background(), undo).CombinedOutput(); err != nil {
			p.t.Errorf("%s: %v: %s", undo, err, out)
		}
	})
}
