package routes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
)

var devices = []string{"d0", "d1", "d2", "d3"}

// network writes random links, addresses, routes and rules as commands of ip. The kernel refuses some of them.
type network struct{ *rand.Rand }

func (n network) one(of ...string) string { return of[n.IntN(len(of))] }

func (n network) maybe(percent int, format string, args ...any) string {
	if n.IntN(100) >= percent {
		return ""
	}
	return " " + fmt.Sprintf(format, args...)
}

// addr4 and addr6 are addresses of a few networks, so that they meet.
func (n network) addr4() string { return fmt.Sprintf("10.%d.%d.%d", n.IntN(4), n.IntN(3), 1+n.IntN(9)) }

func (n network) addr6() string {
	return fmt.Sprintf("fd0%d:%d::%d", n.IntN(4), n.IntN(3), 1+n.IntN(9))
}

func (n network) addr(family string) string {
	if family == "-4" {
		return n.addr4()
	}
	return n.addr6()
}

func (n network) prefix(family string) string {
	if family == "-4" {
		return fmt.Sprintf("%s/%d", n.addr4(), []int{8, 14, 16, 24, 30, 32}[n.IntN(6)])
	}
	return fmt.Sprintf("%s/%d", n.addr6(), []int{8, 16, 32, 48, 64, 128}[n.IntN(6)])
}

// links are the commands for the links and their addresses.
func (n network) links() string {
	var b strings.Builder
	for i := range 2 {
		fmt.Fprintf(&b, "link add %s type veth peer name %s\n", devices[2*i], devices[2*i+1])
	}
	for _, dev := range devices {
		fmt.Fprintf(&b, "link set %s up addrgenmode none\n", dev)
	}
	for range 6 {
		dev := devices[n.IntN(3)] // the last one has none of its own
		fmt.Fprintf(&b, "addr add %s/%d%s dev %s%s\n", n.addr4(), 16+8*n.IntN(3), n.maybe(50, "brd +"), dev, n.maybe(20, "scope link"))
		fmt.Fprintf(&b, "addr add %s/%d dev %s nodad%s\n", n.addr6(), 32+32*n.IntN(4), dev, n.maybe(20, "preferred_lft 0"))
	}
	return b.String()
}

// routing are the commands for the routes and rules of a family.
func (n network) routing(family string) string {
	var b strings.Builder
	for range 24 {
		b.WriteString(n.route(family))
	}
	for i := range n.IntN(6) {
		b.WriteString(n.rule(family, 100+i))
	}
	return b.String()
}

// start is a namespace with a random network, and what ip lists of it.
func (n network) start(t *testing.T, name string) (*nettest.Namespace, trace.Routing) {
	t.Helper()
	ns := nettest.StartNamespace(t, name)
	forward(t, ns)
	ip(t, ns, n.links(), "-force", "-batch", "-")
	settle(t, ns)
	for _, family := range []string{"-4", "-6"} {
		ip(t, ns, n.routing(family), family, "-force", "-batch", "-")
	}
	return ns, read(t, ns)
}

// settle waits until the kernel has made a local route of each IPv6 address, which it does in the background.
func settle(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	for end := time.Now().Add(nettest.Patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		addrs := bytes.Count(must(t, ns, "", "-6", "-o", "address"), []byte("inet6"))
		tentative := bytes.Count(must(t, ns, "", "-6", "-o", "address", "show", "tentative"), []byte("inet6"))
		local := bytes.Count(must(t, ns, "", "-6", "route", "show", "table", "local", "type", "local"), []byte("local"))
		if tentative == 0 && addrs == local {
			return
		}
	}
	t.Fatal("the kernel has not made a local route of each address")
}

func (n network) route(family string) string {
	dst := n.one(n.prefix(family), n.prefix(family), "default")
	tail := n.maybe(30, "metric %d", 1+n.IntN(3)) + n.maybe(30, "table %d", 100+n.IntN(2))
	const command = "route add "
	if n.IntN(5) == 0 {
		return fmt.Sprintf("%s%s %s%s\n", command, n.one("blackhole", "unreachable", "prohibit", "throw"), dst, tail)
	}
	if n.IntN(6) == 0 {
		return fmt.Sprintf("%s%s%s nexthop dev %s weight 2 nexthop dev %s\n", command, dst, tail,
			n.one(devices...), n.one(devices...))
	}
	via := n.maybe(50, "via %s", n.addr(family))
	onlink := ""
	if via != "" && family == "-4" {
		onlink = n.maybe(50, "onlink")
	}
	return fmt.Sprintf("%s%s%s dev %s%s%s%s\n", command, dst, via, n.one(devices...), onlink, n.maybe(20, "src %s", n.addr(family)), tail)
}

func (n network) rule(family string, priority int) string {
	selectors := n.maybe(40, "from %s", n.prefix(family)) + n.maybe(30, "to %s", n.prefix(family)) + n.maybe(30, "fwmark 0x%x%s", n.IntN(4), n.one("", "/0x3", "/0x1")) +
		n.maybe(20, "iif %s", n.one("lo", "d0", "d1")) + n.maybe(10, "oif %s", n.one("d0", "d1")) + n.maybe(20, "uidrange %d-1000", n.IntN(2)*500) +
		n.maybe(25, "ipproto tcp dport 80-90")
	if n.IntN(4) == 0 {
		return fmt.Sprintf("rule add priority %d table main suppress_prefixlength %d\n", priority, n.IntN(24))
	}
	action := n.one("table 100", "table 101", "table 101", "blackhole", "prohibit", "unreachable", "goto 32766", "nop")
	return fmt.Sprintf("rule add %s%s priority %d %s\n", n.one("", "", "", "not"), selectors, priority, action)
}

// query is a random question to a namespace with the routing.
func (n network) query(r trace.Routing, family string) trace.RouteQuery {
	q := trace.RouteQuery{Family: trace.IP, Dst: netip.MustParseAddr(n.addr(family)), Mark: uint32(n.IntN(4))}
	if family == "-6" {
		q.Family = trace.IP6
	}
	switch n.IntN(4) {
	case 0:
		q.IIF, q.Src = n.one("d0", "d1", "d3"), netip.MustParseAddr(n.addr(family))
	case 1:
		q.OIF = n.one(devices...)
		fallthrough
	default:
		q.UID = uint32(n.IntN(3)) * 500
		if own := r.Links[n.IntN(len(r.Links))].Addrs; n.IntN(3) == 0 && len(own) > 0 {
			if a := own[n.IntN(len(own))].Addr(); !a.IsLoopback() && a.Is4() == q.Dst.Is4() {
				q.Src = a
			}
		}
	}
	if n.IntN(3) == 0 {
		q.Protocol, q.Sport, q.Dport = 6, 40000, uint16(75+n.IntN(20))
	}
	return q
}

func arguments(q trace.RouteQuery) []string {
	args := []string{"-j", "route", "get", q.Dst.String(), "mark", fmt.Sprint(q.Mark), "uid", fmt.Sprint(q.UID)}
	if q.Src.IsValid() {
		args = append(args, "from", q.Src.String())
	}
	if q.IIF != "" {
		args = append(args, "iif", q.IIF)
	}
	if q.OIF != "" {
		args = append(args, "oif", q.OIF)
	}
	if q.Protocol != 0 {
		args = append(args, "ipproto", fmt.Sprint(q.Protocol), "sport", fmt.Sprint(q.Sport), "dport", fmt.Sprint(q.Dport))
	}
	return args
}

type answer struct {
	Type, Dev, Gateway, PrefSrc string
	Via                         struct{ Host string }
}

// errorsOfTypes are what ip says where a route or a rule refuses the packet.
var errorsOfTypes = map[string][]string{
	"Invalid argument": {"blackhole"}, "No route to host": {"unreachable"}, "Permission denied": {"prohibit"},
	"Network is unreachable": {"none", "unreachable"},
}

// differs says how the kernel's answer differs from the tracer's.
func differs(stdout []byte, stderr string, q trace.RouteQuery, got trace.RouteResult) string {
	if got.Unknown != "" {
		return "unknown: " + got.Unknown
	}
	for text, types := range errorsOfTypes {
		if strings.Contains(stderr, text) {
			if !slices.Contains(types, got.Type) {
				return "the kernel says " + text
			}
			return ""
		}
	}
	var all []answer
	if err := json.Unmarshal(stdout, &all); err != nil || len(all) != 1 {
		return fmt.Sprintf("ip says %s%s", stdout, stderr)
	}
	want := all[0]
	if want.Type == "" {
		want.Type = "unicast"
	}
	if q.Src.IsValid() {
		want.PrefSrc, got.PrefSrc = "", netip.Addr{}
	}
	hops := got.Several
	if hops == nil {
		hops = []trace.Nexthop{{Dev: got.Dev, Via: got.Via}}
	} else {
		want.PrefSrc, got.PrefSrc = "", netip.Addr{}
	}
	leads := slices.ContainsFunc(hops, func(hop trace.Nexthop) bool {
		return hop.Dev == want.Dev && text(hop.Via) == want.Gateway+want.Via.Host
	})
	if want.Type != got.Type || !leads || text(got.PrefSrc) != want.PrefSrc {
		return "the kernel says " + string(stdout)
	}
	return ""
}

func text(a netip.Addr) string {
	if a.IsValid() {
		return a.String()
	}
	return ""
}

// martian says whether the kernel takes no packet in from this source, which no route decides.
func martian(r trace.Routing, q trace.RouteQuery) bool {
	if q.IIF == "" {
		return false
	}
	back := r.Lookup(trace.RouteQuery{Family: q.Family, Dst: q.Src, Src: q.Dst})
	return back.Type == "local" || back.Type == "broadcast" || back.Type == "multicast"
}

func TestLookupIsWhatTheKernelDoes(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "ip")
	asked := 0
	for seed := range uint64(12) {
		n := network{rand.New(rand.NewPCG(seed, 1))}
		ns, r := n.start(t, fmt.Sprint("route", seed))
		for i := range 60 {
			q := n.query(r, []string{"-4", "-6"}[i%2])
			if martian(r, q) {
				continue
			}
			stdout, stderr := ip(t, ns, "", arguments(q)...)
			asked++
			if d := differs(stdout, stderr, q, r.Lookup(q)); d != "" {
				t.Errorf("seed %d: ip %s:\n%s\ngot %+v", seed, strings.Join(arguments(q), " "), d, r.Lookup(q))
			}
		}
	}
	if asked < 500 {
		t.Errorf("asked %d questions only", asked)
	}
}

func forward(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	err := ns.Do(func() error {
		for file, value := range map[string]string{
			"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
			"ipv6/conf/default/accept_dad": "0", "ipv6/conf/default/dad_transmits": "0",
		} {
			if err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
