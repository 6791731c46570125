package routes_test

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

const addresses = `
link add d0 type veth peer name d1
link add d2 type veth peer name d3
link set d0 up addrgenmode none
link set d1 up addrgenmode none
addr add 10.0.0.1/24 brd + dev d0
addr add 10.0.0.2/24 dev d0
addr add 10.1.0.1 peer 10.1.0.2/32 dev d1
addr add fd00::1/64 dev d0 nodad
addr add 10.2.0.1/24 brd + dev d2
route add default via 10.0.0.9
route add 1.0.0.0/8 via inet6 fd00::9 dev d0
route add 2.0.0.0/8 dev d1 table 77 metric 5 src 10.1.0.1
route add blackhole 3.0.0.0/8
route add 4.0.0.0/8 dev d0 tos 0x10
`

func TestLocalRoutesFollowFromTheAddresses(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "ip")
	ns := nettest.StartNamespace(t, "local")
	must(t, ns, addresses, "-batch", "-")
	settle(t, ns)
	addr := must(t, ns, "", "-j", "address")
	all, err := routes.Read(must(t, ns, "", "-j", "route", "show", "table", "all"), addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	mainOnly, err := routes.Read(append(must(t, ns, "", "-j", "route"), must(t, ns, "", "-j", "-6", "route")...), addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := locals(mainOnly), locals(all); !slices.Equal(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	addressesOnly, err := routes.Read(nil, addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "127.0.0.9", "10.0.0.255", "224.0.0.1", "9.9.9.9", "255.255.255.255"} {
		dst := netip.MustParseAddr(a)
		want, _ := all.Type(dst, "")
		if got, known := mainOnly.Type(dst, ""); got != want || !known {
			t.Errorf("%s is %s without the table local, %s with it", a, got, want)
		}
		if got, known := addressesOnly.Type(dst, ""); got != want || !known {
			t.Errorf("%s is %s by the addresses alone, %s by the routes", a, got, want)
		}
	}
}

// locals are the local and broadcast routes. The kernel gives IPv6 multicast and anycast routes of its own.
func locals(r trace.Routing) []string {
	var all []string
	for _, route := range r.Routes {
		if route.Table == "local" && (route.Type == "local" || route.Type == "broadcast") {
			all = append(all, route.Type+" "+route.Dst.String()+" "+route.Nexthops[0].Dev)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func TestReadReadsAllKindsOfRoutes(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "ip")
	ns := nettest.StartNamespace(t, "kinds")
	must(t, ns, addresses, "-batch", "-")
	settle(t, ns)
	must(t, ns, "route add default dev d1\nroute add fd01::/64 from fd00::/64 dev d0\n", "-6", "-batch", "-")
	all, err := routes.Read(must(t, ns, "", "-j", "route", "show", "table", "all"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []trace.Route{
		{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("0.0.0.0/0"), Nexthops: hop("10.0.0.9", "d0")},
		{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("1.0.0.0/8"), Nexthops: hop("fd00::9", "d0")},
		{Table: "77", Type: "unicast", Dst: netip.MustParsePrefix("2.0.0.0/8"), Metric: 5, Scope: trace.ScopeLink,
			PrefSrc: netip.MustParseAddr("10.1.0.1"), Nexthops: hop("", "d1")},
		{Table: "main", Type: "blackhole", Dst: netip.MustParsePrefix("3.0.0.0/8")},
		{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("::/0"), Metric: 1024, Nexthops: hop("", "d1")},
		{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("fd01::/64"), From: netip.MustParsePrefix("fd00::/64"), Metric: 1024,
			Nexthops: hop("", "d0")},
	}
	for _, w := range want {
		i := slices.IndexFunc(all.Routes, func(r trace.Route) bool { return r.Dst == w.Dst })
		if i < 0 {
			t.Errorf("there is no route to %s", w.Dst)
			continue
		}
		got := all.Routes[i]
		if !slices.Equal(got.Nexthops, w.Nexthops) {
			t.Errorf("%s: got %+v, want %+v", w.Dst, got.Nexthops, w.Nexthops)
		}
		got.Nexthops, w.Nexthops = nil, nil
		if !reflect.DeepEqual(got, w) {
			t.Errorf("got %+v, want %+v", got, w)
		}
	}
	if slices.ContainsFunc(all.Routes, func(r trace.Route) bool { return r.Dst.String() == "4.0.0.0/8" }) {
		t.Error("the route for a type of service is there")
	}
}

func hop(via, dev string) []trace.Nexthop {
	read, _ := netip.ParseAddr(via)
	return []trace.Nexthop{{Via: read, Dev: dev, Weight: 1}}
}

func TestLookupSaysWhatItCanNotTell(t *testing.T) {
	t.Parallel()
	const (
		addr     = `[{"ifname":"lo","flags":["UP"],"addr_info":[]},{"ifname":"d0","flags":["UP"],"addr_info":[{"local":"10.0.0.1","prefixlen":24},{"local":"fd00::1","prefixlen":64}]}]`
		route    = `[{"dst":"default","gateway":"10.0.0.9","dev":"d0","flags":[]},{"dst":"1.0.0.0/8","encap":"mpls","dev":"d0","flags":[]}]`
		tunnel   = `[{"priority":0,"src":"all","table":"local"},{"priority":5,"src":"all","tun_id":5,"table":"5"},{"priority":32767,"src":"all","table":"default"}]`
		multiple = `[{"priority":0,"src":"all","table":"local"},{"priority":5,"not":null,"src":"all","goto":9},{"priority":8,"src":"all","action":"prohibit"},{"priority":9,"src":"all","table":"main"},{"priority":32767,"src":"all","table":"default"}]`
	)
	for _, c := range []struct{ name, route, addr, rule, dst, want string }{
		{"nothing", "", "", "", "9.9.9.9", "unknown: the routes are not known"},
		{"own address", "", addr, "", "10.0.0.1", "local"},
		{"no routes", "", addr, "", "9.9.9.9", "unknown: the routes are not known"},
		{"no addresses", route, "", "", "9.9.9.9", "unknown: it is not known whether 9.9.9.9 is an address of this namespace"},
		{"both", route, addr, "", "9.9.9.9", "unicast"},
		{"loopback", route, "", "", "127.0.0.3", "local"},
		{"the other family", route, addr, "", "fd09::1", "unknown: the routes of family ip6 are not known"},
		{"encapsulation", route, addr, "", "1.1.1.1", "unknown: the route to 1.0.0.0/8 has an encapsulation"},
		{"selector", route, addr, tunnel, "9.9.9.9", "unknown: it is not known whether the routing rule matches that has tun_id"},
		{"rules", route, addr, multiple, "9.9.9.9", "prohibit"},
	} {
		r, err := routes.Read(input(c.route), input(c.addr), input(c.rule))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		dst := netip.MustParseAddr(c.dst)
		family := trace.IP
		if dst.Is6() {
			family = trace.IP6
		}
		res := r.Lookup(trace.RouteQuery{Family: family, Dst: dst})
		got := res.Type
		if res.Unknown != "" {
			got = "unknown: " + res.Unknown
		}
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func input(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func TestReadSaysWhatABadFileIs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ route, addr, rule, want string }{
		{route: " ", want: "read the routes: the file is empty: get the right file with `ip -j route show table all`"},
		{route: `[{"dst":"default"`, want: "truncated after 17 bytes"},
		{route: "default via 10.0.0.9 dev eth0\n", want: "this is not JSON: add -j, as in `ip -j route show table all`"},
		{route: `[{"dst":"default"}]x`, want: "this is not JSON (invalid character 'x'"},
		{route: `{"nftables":[]}`, want: "another program's JSON, not a list"},
		{route: `[{"ifname":"lo"}]`, want: `another program's JSON: entry 1 has no "dst"`},
		{route: `[{"dst":"x"}]`, want: `route 1: "x" is no prefix`},
		{route: `[{"dst":5}]`, want: "ip does not print this"},
		{addr: `[{"dst":"default"}]`, want: "read the addresses: this is another program's JSON: entry 1 has no \"ifname\": get the right file with `ip -j address`"},
		{rule: "0:	from all lookup local", want: "read the rules: this is not JSON: add -j, as in `ip -j rule`"},
		{rule: `[{"priority":1,"src":"x"}]`, want: "rule 1: src: "},
		{rule: `[{"priority":1,"src":"all","fwmark":"0x1ffffffff"}]`, want: "rule 1: fwmark: "},
	} {
		_, err := routes.Read(input(c.route), input(c.addr), input(c.rule))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s%s%s: got %v, want %s", c.route, c.addr, c.rule, err, c.want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is more than a line", err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`[{"dst":"default","gateway":"10.0.0.9","dev":"d0","flags":[]},{"type":"throw","dst":"1.0.0.0/8","table":5}]`),
		[]byte(`[{"ifname":"d0","flags":["UP"],"addr_info":[{"local":"10.0.0.1","prefixlen":24,"scope":"global","broadcast":"10.0.0.255"}]}]`),
		[]byte(`[{"priority":0,"src":"all","table":"local"},{"priority":5,"not":null,"src":"1.0.0.0","srclen":8,"goto":9}]`))
	f.Fuzz(func(t *testing.T, route, addr, rule []byte) {
		r, err := routes.Read(route, addr, rule)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
			return
		}
		for _, dst := range []string{"10.0.0.1", "1.1.1.1", "fd00::1"} {
			a := netip.MustParseAddr(dst)
			q := trace.RouteQuery{Family: trace.IP, Dst: a, OIF: "d0"}
			if a.Is6() {
				q.Family = trace.IP6
			}
			if res := r.Lookup(q); res.Type == "" && res.Unknown == "" {
				t.Errorf("%s: no answer", dst)
			}
		}
	})
}
