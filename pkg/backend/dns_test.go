package backend

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"

	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// Real DNS queries: the application's are answered by the proxy, the proxy's own by the server outside, over UDP and TCP
// and both families; over UDP even from the same port one after the other, which only the conntrack zones make possible.
func TestIstioCapturesRealDNSQueries(t *testing.T) {
	forEachBackend(t, func(t *testing.T, p *Program) {
		_, app, proxy := startDNS(t, p)
		for source, server := range map[netip.Addr]string{nettest.PodIPv4: "10.96.0.10:53", nettest.PodIPv6: "[2001:db8::10]:53"} {
			for _, protocol := range []nettest.Protocol{nettest.UDP, nettest.TCP} {
				call := nettest.Call{Protocol: protocol, Destination: netip.MustParseAddrPort(server)}
				if protocol == nettest.UDP {
					call.Source = netip.AddrPortFrom(source, 40000)
				}
				for _, ask := range []struct {
					who  nettest.Process
					want string
				}{{app, "the proxy"}, {proxy, "the server"}, {app, "the proxy"}} {
					got, err := ask.who.QueryDNS(call, "web.shop.svc.cluster.local.")
					if err != nil || got != ask.want {
						t.Errorf("UID %d asks %s by %s: answered by %q, %v, want %q", ask.who.UID, server, protocol, got, err, ask.want)
					}
				}
			}
		}
	})
}

// withoutZones takes a backend's rules out of table raw.
var withoutZones = map[string]string{
	"iptables-nft":    "iptables-nft -t raw -F",
	"iptables-legacy": "XTABLES_LOCKFILE=/proc/self/stat iptables-legacy -t raw -F",
	nftables.Name:     "nft flush chain inet detour raw-OUTPUT; nft flush chain inet detour raw-PREROUTING",
}

// Without the zones the proxy's query from the application's port would go to the proxy itself: the test above can fail.
func TestWithoutZonesTheProxyAsksItself(t *testing.T) {
	forEachBackend(t, func(t *testing.T, p *Program) {
		pod, app, proxy := startDNS(t, p)
		err := pod.Do(func() error { return exec.Command("sh", "-ec", withoutZones[p.prepared.Variant()]).Run() })
		if err != nil {
			t.Fatal(err)
		}
		call := nettest.Call{Protocol: nettest.UDP, Source: netip.AddrPortFrom(nettest.PodIPv4, 40000), Destination: netip.MustParseAddrPort("10.96.0.10:53")}
		for _, who := range []nettest.Process{app, proxy} {
			if got, err := who.QueryDNS(call, "web."); err != nil || got != "the proxy" {
				t.Errorf("UID %d: answered by %q, %v", who.UID, got, err)
			}
		}
	})
}

// captured is a pod of istio with DNS capture.
func captured(t *testing.T) rules.Ruleset {
	t.Helper()
	decision, err := testcase.Find(t, "../..", "istio/dns-capture").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	return decision.Policy.Ruleset()
}

// forEachBackend runs a test with every backend, of captured's rules.
func forEachBackend(t *testing.T, test func(*testing.T, *Program)) {
	nettest.RequireNetns(t)
	for _, p := range programs(t, captured(t), rules.Families) {
		t.Run(p.prepared.Variant(), func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

// programs are a ruleset's of every backend and variant.
func programs(t *testing.T, rs rules.Ruleset, families []rules.Family) []*Program {
	t.Helper()
	for _, program := range []string{"iptables-nft-restore", "iptables-legacy-restore", "nft"} {
		nettest.RequireProgram(t, program)
	}
	var all []*Program
	for _, b := range backends {
		if len(b.Variants()) > 1 {
			continue
		}
		prepared, err := b.Prepare(t.Context(), rs, families)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &Program{backend: b, prepared: prepared, rules: rs, families: families})
	}
	for _, variant := range iptables.Installed(t.Context()) {
		all = append(all, &Program{backend: iptables.Backend{}, prepared: variant.Prepare(rs, families), rules: rs, families: families})
	}
	return all
}

// startDNS returns a pod of captured's rules, in which the proxy answers queries, and so does a server outside.
func startDNS(t *testing.T, p *Program) (pod *nettest.Namespace, app, proxy nettest.Process) {
	t.Helper()
	world := nettest.StartWorld(t)
	applied(t, world.Pod, p)
	app = nettest.Process{Namespace: world.Pod, UID: nettest.AppUID, GID: nettest.AppGID}
	proxy = nettest.Process{Namespace: world.Pod, UID: 1337, GID: 1337}
	serveDNS(t, proxy, 15053, "the proxy")
	serveDNS(t, nettest.Process{Namespace: world.Outside}, 53, "the server")
	return world.Pod, app, proxy
}

func serveDNS(t *testing.T, p nettest.Process, port uint16, txt string) {
	t.Helper()
	l, err := p.ListenDNS(port, txt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
