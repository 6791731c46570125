package nftables

import (
	"net/netip"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Real DNS queries: the application's are answered by the proxy, the proxy's own by the server outside, over UDP and TCP
// and both families; over UDP even from the same port one after the other, which only the conntrack zones make possible.
func TestIstioCapturesRealDNSQueries(t *testing.T) {
	t.Parallel()
	_, app, proxy := startDNS(t)
	for source, server := range map[netip.Addr]string{nettest.PodIPv4: "10.96.0.10:53", nettest.PodIPv6: "[2001:db8::10]:53"} {
		for _, protocol := range []nettest.Protocol{nettest.UDP, nettest.TCP} {
			call := nettest.Call{Protocol: protocol, Destination: netip.MustParseAddrPort(server), Timeout: 3 * time.Second}
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
}

// Without the zones the proxy's query from the application's port would go to the proxy itself: the test above can fail.
func TestWithoutZonesTheProxyAsksItself(t *testing.T) {
	t.Parallel()
	pod, app, proxy := startDNS(t)
	nft(t, pod, "flush chain inet detour raw-OUTPUT\nflush chain inet detour raw-PREROUTING\n", "-f", "-")
	call := nettest.Call{Protocol: nettest.UDP, Source: netip.AddrPortFrom(nettest.PodIPv4, 40000), Destination: netip.MustParseAddrPort("10.96.0.10:53"), Timeout: 3 * time.Second}
	for _, who := range []nettest.Process{app, proxy} {
		if got, err := who.QueryDNS(call, "web."); err != nil || got != "the proxy" {
			t.Errorf("UID %d: answered by %q, %v", who.UID, got, err)
		}
	}
}

// startDNS returns a pod of istio with DNS capture, in which the proxy answers queries, and so does a server outside.
func startDNS(t *testing.T) (pod *nettest.Namespace, app, proxy nettest.Process) {
	t.Helper()
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, build(t, testcase.Find(t, "../../..", "istio/dns-capture")), rules.Families)
	app = nettest.Process{Namespace: w.Pod, UID: nettest.AppUID, GID: nettest.AppGID}
	proxy = nettest.Process{Namespace: w.Pod, UID: 1337, GID: 1337}
	serveDNS(t, proxy, 15053, "the proxy")
	serveDNS(t, nettest.Process{Namespace: w.Outside}, 53, "the server")
	return w.Pod, app, proxy
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
