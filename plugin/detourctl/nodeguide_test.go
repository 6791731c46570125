package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// guideFolder has the tables of a guide about a service that can't be reached, because the second node drops what the first
// sends through the tunnel.
const guideFolder = "../../testdata/guides/node-path-forward-drop"

// The service, and the pod of the second node.
var (
	guideService = netip.MustParseAddrPort("10.108.94.160:80")
	guidePod     = netip.MustParseAddrPort("10.224.2.16:80")
)

// guideRule is the guide's answer.
const guideRule = "iptables -A FORWARD -i flannel.1 -d 10.224.2.0/24 -j ACCEPT"

// guideNode is a node with the guide's rules. Its bridge and tunnel lead to namespaces with the addresses that are there.
type guideNode struct {
	t                       *testing.T
	iptables                string // iptables-nft or iptables-legacy
	node, lan, tunnel, pods *nettest.Namespace
}

// newGuideNode makes the node that the files of that name describe.
func newGuideNode(t *testing.T, iptables, name string) guideNode {
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, iptables)
	g := guideNode{t: t, iptables: iptables}
	for _, ns := range []**nettest.Namespace{&g.node, &g.lan, &g.tunnel, &g.pods} {
		*ns = nettest.StartNamespace(t, "guide")
	}
	for link, peer := range map[string]*nettest.Namespace{"eth0": g.lan, "flannel.1": g.tunnel, "cni0": g.pods} {
		sh(t, g.node, fmt.Sprintf("ip link add %s type veth peer name peer netns %s", link, peer.Name()))
		sh(t, peer, "ip link set peer up")
	}
	sh(t, g.node, "ip link add docker0 type bridge; echo 1 >/proc/sys/net/ipv4/ip_forward")
	var links []struct {
		Ifname   string
		AddrInfo []struct {
			Local, Broadcast string
			Prefixlen        int
		} `json:"addr_info"`
	}
	readGuide(t, name+".addr.json", &links)
	for _, l := range links {
		for _, a := range l.AddrInfo {
			if l.Ifname != "lo" {
				sh(t, g.node, fmt.Sprintf("ip addr add %s/%d broadcast %s dev %s; ip link set %[4]s up", a.Local, a.Prefixlen, cmp.Or(a.Broadcast, "0.0.0.0"), l.Ifname))
			}
		}
	}
	var routes []struct{ Dst, Gateway, Dev string }
	readGuide(t, name+".route.json", &routes)
	for _, r := range slices.Backward(routes) { // the way to a gateway comes after it
		if r.Gateway != "" {
			sh(t, g.node, fmt.Sprintf("ip route add %s via %s dev %s $([ %[3]s = eth0 ] || echo onlink)", r.Dst, r.Gateway, r.Dev))
		}
	}
	sh(t, g.node, fmt.Sprintf("%s-restore --test <%[2]s; %[1]s-restore <%[2]s", iptables, guideFile(t, name+".iptables-save")))
	return g
}

func guideFile(t *testing.T, name string) string {
	path, err := filepath.Abs(filepath.Join(guideFolder, name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func readGuide(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(guideFile(t, name))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sh runs a script in the namespace, which must succeed, and returns what it printed.
func sh(t *testing.T, ns *nettest.Namespace, script string) string {
	t.Helper()
	var out []byte
	if err := ns.Do(func() (err error) {
		out, err = exec.Command("sh", "-euc", script).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// serve answers at a port with the address of who asks.
func serve(t *testing.T, ns *nettest.Namespace, port uint16) {
	t.Helper()
	l, err := nettest.Listen(ns, port, func(conn *net.TCPConn) string {
		return conn.RemoteAddr().(*net.TCPAddr).IP.String()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// dropped is how many packets the policy of the chain FORWARD has dropped.
func (g guideNode) dropped() int {
	g.t.Helper()
	var n int
	for line := range strings.Lines(sh(g.t, g.node, g.iptables+"-save -c -t filter")) {
		if _, err := fmt.Sscanf(line, ":FORWARD DROP [%d:", &n); err == nil {
			return n
		}
	}
	g.t.Fatal("FORWARD has another policy")
	return 0
}

var bothIptables = []string{"iptables-nft", "iptables-legacy"}

func TestTheGuidesFirstNodeMasqueradesToTheTunnel(t *testing.T) {
	t.Parallel()
	for _, iptables := range bothIptables {
		t.Run(iptables, func(t *testing.T) {
			t.Parallel()
			g := newGuideNode(t, iptables, "master")
			sh(t, g.lan, "ip addr add 192.0.2.1/24 dev peer; ip route add default via 192.0.2.10")
			sh(t, g.tunnel, `for addr in 10.224.1.0 10.224.1.14 10.224.2.0 10.224.2.16; do ip addr add $addr/32 dev peer; done
				ip route add 10.224.0.0/32 dev peer`)
			serve(t, g.tunnel, guidePod.Port())
			got, err := nettest.Dial(g.lan, 0, guideService, nettest.Patience)
			if got != "10.224.0.0" || err != nil {
				t.Errorf("the pod was asked by %q, %v, want 10.224.0.0, the tunnel's address", got, err)
			}
			var want, have any
			readGuide(t, "master.route.json", &want)
			if err := json.Unmarshal([]byte(sh(t, g.node, "ip -j route")), &have); err != nil || !reflect.DeepEqual(have, want) {
				t.Errorf("the routes are %v, %v, want those of the file, %v", have, err, want)
			}
		})
	}
}

func TestTheGuidesSecondNodeDropsByThePolicyOfForward(t *testing.T) {
	t.Parallel()
	for _, iptables := range bothIptables {
		t.Run(iptables, func(t *testing.T) {
			t.Parallel()
			g := newGuideNode(t, iptables, "node")
			sh(t, g.tunnel, `for addr in 10.224.0.0 10.224.1.0; do ip addr add $addr/32 dev peer; done
				ip route add 10.224.2.0/32 dev peer; ip route add 10.224.2.0/24 via 10.224.2.0`)
			sh(t, g.pods, "ip addr add 10.224.2.16/24 dev peer; ip route add default via 10.224.2.1")
			serve(t, g.pods, guidePod.Port())
			if got, err := nettest.Dial(g.tunnel, 0, guidePod, nettest.Silence); !errors.Is(err, nettest.ErrTimeout) || g.dropped() == 0 {
				t.Errorf("the pod answered %q, %v, and the policy has dropped %d packets", got, err, g.dropped())
			}
			sh(t, g.node, strings.Replace(guideRule, "iptables", iptables, 1))
			if got, err := nettest.Dial(g.tunnel, 0, guidePod, nettest.Patience); got != "10.224.0.0" || err != nil {
				t.Errorf("with the guide's rule the pod answered %q, %v", got, err)
			}
		})
	}
}

// The packet that the guide follows, on the first node and on the second.
var (
	firstPacket  = []string{"--in=eth0", "--from=192.0.2.1", "--to=" + guideService.String()}
	secondPacket = []string{"--in=flannel.1", "--from=10.224.0.0", "--to=" + guidePod.String()}
)

// traced is what trace prints as JSON.
type traced struct {
	Ways []struct {
		Probability float64
		Verdict     string
		At          struct {
			Table, Chain string
			Policy       bool
		}
		Packet struct{ From, To, Interface string }
	}
	Advice string
}

// traceGuide traces a packet in the files of a node.
func traceGuide(t *testing.T, node string, packet ...string) (answer traced) {
	t.Helper()
	c := traceCommand()
	c.SilenceUsage, c.SilenceErrors = true, true
	var out bytes.Buffer
	c.SetOut(&out)
	args := []string{"-o=json"}
	for flag, file := range map[string]string{"--iptables-save=": "iptables-save", "--route=": "route.json", "--addr=": "addr.json"} {
		args = append(args, flag+filepath.Join(guideFolder, node+"."+file))
	}
	c.SetArgs(append(args, packet...))
	err := c.Execute()
	if jsonErr := json.Unmarshal(out.Bytes(), &answer); jsonErr != nil {
		t.Fatalf("trace on %s: %v: %v", node, err, jsonErr)
	}
	return answer
}

func TestTraceSaysWhatTheNodeGuideFoundOut(t *testing.T) {
	t.Parallel()
	var first []string
	for _, w := range traceGuide(t, "master", firstPacket...).Ways {
		first = append(first, fmt.Sprintf("%g %s %s -> %s by %s", w.Probability, w.Verdict, w.Packet.From, w.Packet.To, w.Packet.Interface))
	}
	want := []string{"0.5 accepted 10.224.0.0 -> 10.224.1.14:80 by flannel.1", "0.5 accepted 10.224.0.0 -> 10.224.2.16:80 by flannel.1"}
	if !slices.Equal(first, want) {
		t.Errorf("first node: %q, want %q", first, want)
	}
	second := traceGuide(t, "node", secondPacket...)
	if w := second.Ways; len(w) != 1 || w[0].Verdict != "dropped" || w[0].At.Table != "filter" || w[0].At.Chain != "FORWARD" || !w[0].At.Policy {
		t.Errorf("second node: %+v, want that the policy of FORWARD drops the packet", w)
	}
	if !strings.Contains(second.Advice, "`"+guideRule+"`") {
		t.Errorf("second node: %s, want the guide's own rule, %s", second.Advice, guideRule)
	}
}
