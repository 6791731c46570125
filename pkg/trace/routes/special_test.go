package routes_test

import (
	"net/netip"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
)

// rare are the networks that random ones seldom are, with the questions that show it.
var rare = []struct {
	name, setup, setup6 string
	questions           []trace.RouteQuery
}{
	{"mark without a mask", "addr add 10.0.0.1/24 dev d0\nroute add blackhole 9.0.0.0/8 table 100\nrule add fwmark 0x2 table 100\n", "",
		[]trace.RouteQuery{{Dst: addr("9.1.1.1"), Mark: 2}, {Dst: addr("9.1.1.1"), Mark: 3}}},
	{"ports", "addr add 10.0.0.1/24 dev d0\nroute add default dev d0\nroute add blackhole 9.0.0.0/8 table 100\n" +
		"rule add ipproto tcp dport 80-90 sport 1000 table 100\n", "",
		[]trace.RouteQuery{
			{Dst: addr("9.1.1.1"), Protocol: 6, Sport: 1000, Dport: 80}, {Dst: addr("9.1.1.1"), Protocol: 6, Sport: 1000, Dport: 91},
			{Dst: addr("9.1.1.1"), Protocol: 6, Sport: 1001, Dport: 90}, {Dst: addr("9.1.1.1"), Protocol: 17, Sport: 1000, Dport: 90},
		}},
	{"rules of absent interfaces", "addr add 10.0.0.1/24 dev d0\nroute add default dev d0\nroute add blackhole 9.0.0.0/8 table 100\n" +
		"route add blackhole 8.0.0.0/8 table 101\nrule add iif d9 table 100\nrule add not oif d9 table 101\n", "",
		[]trace.RouteQuery{{Dst: addr("9.1.1.1")}, {Dst: addr("8.1.1.1")}, {Dst: addr("9.1.1.1"), Src: addr("10.0.0.7"), IIF: "d0"}}},
	{"source in the gateway's network", "addr add 10.0.0.1/24 dev d0\naddr add 10.0.1.1/24 dev d0\nroute add 9.0.0.0/8 via 10.0.1.9\n" +
		"route add 8.0.0.0/8 via 10.0.0.9\n", "", []trace.RouteQuery{{Dst: addr("9.1.1.1")}, {Dst: addr("8.1.1.1")}}},
	{"source of a point-to-point link", "addr add 10.0.0.1/24 dev d0\naddr add 10.0.1.1 peer 10.0.2.2/32 dev d0\nroute add 9.0.0.0/8 via 10.0.2.2\n", "",
		[]trace.RouteQuery{{Dst: addr("9.1.1.1")}, {Dst: addr("10.0.2.2")}}},
	{"metric", "addr add 10.0.0.1/24 dev d0\nroute add 9.0.0.0/8 dev d1 metric 7\nroute add 9.0.0.0/8 dev d0 metric 5\n", "",
		[]trace.RouteQuery{{Dst: addr("9.1.1.1")}, {Dst: addr("9.1.1.1"), OIF: "d1"}}},
	{"the interface that it came in on", "", "addr add fd00::1/64 dev d0 nodad\naddr add fd00::2/64 dev d1 nodad\n",
		[]trace.RouteQuery{{Dst: addr("fd00::9"), Src: addr("fd00::8"), IIF: "d1"}, {Dst: addr("fd00::9"), Src: addr("fd00::8"), IIF: "d0"},
			{Dst: addr("fd00::9"), Src: addr("fd00::1"), OIF: "d1"}}},
	{"labels", "", "addr add 2002::1/64 dev d0 nodad\naddr add fd00::1/64 dev d0 nodad\naddr add 2400::1/64 dev d0 nodad\nroute add default dev d0\n",
		[]trace.RouteQuery{{Dst: addr("2002:5::9")}, {Dst: addr("fc00::9")}, {Dst: addr("3000::9")}, {Dst: addr("fe80::9"), OIF: "d0"}}},
	{"longest common prefix", "", "addr add 2400:1::1/64 dev d0 nodad\naddr add 2400:2::1/32 dev d0 nodad\nroute add default dev d0\n",
		[]trace.RouteQuery{{Dst: addr("2400:2:3::9")}, {Dst: addr("2400:1:0:3::9")}}},
	{"broadcast and multicast", "addr add 10.0.0.1/24 brd + dev d0\nroute add default via 10.0.0.9\n", "",
		[]trace.RouteQuery{{Dst: addr("10.0.0.255")}, {Dst: addr("255.255.255.255")}, {Dst: addr("224.0.0.5")}, {Dst: addr("127.1.2.3")},
			{Dst: addr("10.0.0.255"), Src: addr("10.0.0.7"), IIF: "d0"}, {Dst: addr("10.0.0.1"), Src: addr("10.0.0.7"), IIF: "d1"}}},
	{"a gateway of another family", "addr add 10.0.0.1/24 dev d0\n", "addr add fd00::1/64 dev d0 nodad\n",
		[]trace.RouteQuery{{Dst: addr("10.0.0.7")}, {Dst: addr("1.1.1.1")}}},
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestLookupIsWhatTheKernelDoesInRareNetworks(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "ip")
	for _, c := range rare {
		ns := nettest.StartNamespace(t, "rare")
		forward(t, ns)
		must(t, ns, "link add d0 type veth peer name d1\nlink set d0 up addrgenmode none\nlink set d1 up addrgenmode none\n"+c.setup, "-batch", "-")
		must(t, ns, c.setup6, "-6", "-batch", "-")
		settle(t, ns)
		if c.name == "a gateway of another family" {
			must(t, ns, "", "route", "add", "1.0.0.0/8", "via", "inet6", "fd00::7", "dev", "d0")
		}
		r := read(t, ns)
		for _, q := range c.questions {
			q.Family = trace.IP
			if q.Dst.Is6() {
				q.Family = trace.IP6
			}
			stdout, stderr := ip(t, ns, "", arguments(q)...)
			if d := differs(stdout, stderr, q, r.Lookup(q)); d != "" {
				t.Errorf("%s: %+v:\n%s\ngot %+v", c.name, q, d, r.Lookup(q))
			}
		}
	}
}
