package trace_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
)

// walked walks a packet to 10.0.0.1:80, TCP, through rules of iptables.
func walked(t *testing.T, p trace.Packet, r trace.Routing, tables ...string) trace.Result {
	t.Helper()
	ns := &trace.Namespace{Routing: r}
	for _, text := range tables {
		read, err := iptsave.Read([]byte(text+"\nCOMMIT\n"), trace.IP, iptsave.Unnamed, nil)
		if err != nil {
			t.Fatal(err)
		}
		ns.Tables = append(ns.Tables, read...)
	}
	p.Protocol, p.Src, p.Dst = 6, netip.MustParseAddrPort("10.0.0.9:4000"), netip.MustParseAddrPort("10.0.0.1:80")
	result, err := trace.Walk(ns, p)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

var (
	sent = trace.Packet{Direction: trace.Out, ToInterface: "eth0"}
	came = trace.Packet{Direction: trace.In, Interface: "eth0"}
)

func TestOnlyTheNearestMissesAreNoted(t *testing.T) {
	t.Parallel()
	far := strings.Repeat("-A OUTPUT -p udp -m udp --dport 53 -m mark --mark 7 -j DROP\n", 9)
	near := strings.Repeat("-A OUTPUT -p udp -m udp --dport 80 -m mark --mark 0 -j DROP\n", 7)
	w := walked(t, sent, trace.Routing{}, "*filter\n:A - [0:0]\n"+far+near+
		"-A OUTPUT -d 10.0.0.2/32 -p tcp -m tcp --dport 80 -j A\n"+ // for another address
		"-A OUTPUT -p udp -j A\n"+
		"-A OUTPUT -p tcp -m tcp --dport 81 -j A\n-A OUTPUT -j ACCEPT").Ways[0]
	var missed []string
	for _, s := range w.Steps {
		if s.Missed != "" {
			missed = append(missed, s.Rule.Text)
		}
	}
	if len(missed) != 8 || !strings.Contains(missed[0], "--dport 80") || !strings.Contains(missed[7], "--dport 81") {
		t.Errorf("noted:\n%s", strings.Join(missed, "\n"))
	}
}

func TestWhatDoesNotMatterIsNoFork(t *testing.T) {
	t.Parallel()
	ways := walked(t, sent, trace.Routing{}, "*filter\n:A - [0:0]\n-A OUTPUT -m foo -j A\n-A A -p udp -j DROP\n-A OUTPUT -j ACCEPT").Ways
	if len(ways) != 1 || ways[0].Verdict != trace.Accepted || len(ways[0].Outcomes) != 0 {
		t.Fatalf("got %+v", ways)
	}
	for _, s := range ways[0].Steps {
		if s.Unknown != "" && s.Assumed != "either way, the packet fares alike" {
			t.Errorf("it is assumed: %s", s.Assumed)
		}
	}
}

func TestAnOutcomeIsAsLikelyAsItIsOnItsWay(t *testing.T) {
	t.Parallel()
	ways := walked(t, sent, trace.Routing{}, "*filter\n-A OUTPUT -m statistic --mode random --probability 0.5 -j DROP\n"+
		"-A OUTPUT -m foo -j DROP\n-A OUTPUT -m statistic --mode random --probability 0.25 -j DROP").Ways
	if len(ways) != 2 || ways[0].Verdict != trace.Dropped || ways[0].Probability != 0.5 ||
		ways[1].Verdict != trace.Unknown || ways[1].Probability != 0.5 || len(ways[1].Outcomes) != 3 {
		t.Fatalf("got %+v", ways)
	}
	for i, want := range []float64{1, 0.25, 0.75} {
		if o := ways[1].Outcomes[i]; o.Probability != want {
			t.Errorf("outcome %d: %s with %v, want %v", i, o.Verdict, o.Probability, want)
		}
	}
}

func TestTooManyWaysAreOneUnknownWay(t *testing.T) {
	t.Parallel()
	var rules strings.Builder
	for range 13 {
		rules.WriteString("-A OUTPUT -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x1/0x0\n")
	}
	ways := walked(t, sent, trace.Routing{}, "*mangle\n"+rules.String()).Ways
	sum := 0.0
	for _, w := range ways {
		sum += w.Probability
	}
	last := ways[len(ways)-1]
	if len(ways) != 4097 || last.Verdict != trace.Unknown || last.Probability != 0.5 || sum != 1 {
		t.Errorf("%d ways of %v, the last %s with %v", len(ways), sum, last.Verdict, last.Probability)
	}
}

func TestNATAsksAboutTheFirstPacketOfAConnection(t *testing.T) {
	t.Parallel()
	for state, want := range map[uint32]trace.Outcome{
		trace.CTNew: trace.Redirected, trace.CTRelated: trace.Redirected, trace.CTEstablished: trace.Accepted, trace.CTInvalid: trace.Accepted,
	} {
		p := sent
		p.State = state
		if w := walked(t, p, trace.Routing{}, "*nat\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15001").Ways[0]; w.Verdict != want {
			t.Errorf("state %d: %s, want %s", state, w.Verdict, want)
		}
	}
}

// routed has eth0 with 10.0.0.7, and a rule that leads the mark 1 to a local route.
var routed = trace.Routing{
	LinksKnown: true, RoutesKnown: true,
	Links: []trace.Link{{Name: "eth0", Addrs: []trace.LinkAddr{{Prefix: netip.MustParsePrefix("10.0.0.7/24")}}}},
	Rules: []trace.RoutingRule{
		{Family: trace.IP, Priority: 1, Mark: 1, Mask: 1, UIDHi: 1<<32 - 1, Table: "100"}, {Family: trace.IP, Priority: 2, UIDHi: 1<<32 - 1, Table: "main"},
	},
	Routes: []trace.Route{
		{Table: "100", Type: "local", Dst: netip.MustParsePrefix("0.0.0.0/0"), Nexthops: []trace.Nexthop{{Dev: "lo"}}},
		{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("10.0.0.0/24"), Nexthops: []trace.Nexthop{{Dev: "eth0"}}},
	},
}

func TestWhatBecomesOfAPacketThatTProxyTook(t *testing.T) {
	t.Parallel()
	const tproxy = " -j TPROXY --on-port 15003 --on-ip 0.0.0.0 --tproxy-mark "
	for _, test := range []struct {
		name   string
		tables []string
		want   trace.Outcome
		reason string
	}{
		{"marked", []string{"*mangle\n-A PREROUTING -p tcp" + tproxy + "0x1/0x1"}, trace.TProxied, ""},
		{"not marked", []string{"*mangle\n-A PREROUTING -p tcp" + tproxy + "0x0/0x0"}, trace.Dropped, "does not forward a packet that TPROXY took"},
		{"translated", []string{"*mangle\n-A PREROUTING -p tcp" + tproxy + "0x1/0x1", "*nat\n-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.7:8080"},
			trace.Rejected, "resets it at its second packet"},
		{"only its first packet", []string{"*mangle\n-A PREROUTING -p tcp -m connmark --mark 0x5 -j MARK --set-xmark 0x1/0x1\n" +
			"-A PREROUTING -p tcp -m connmark --mark 0x5 -j ACCEPT\n-A PREROUTING -j CONNMARK --set-xmark 0x5/0xffffffff\n-A PREROUTING -p tcp" + tproxy + "0x1/0x1",
			"*nat\n-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.7:8080"}, trace.TProxied, ""},
	} {
		w := walked(t, came, routed, test.tables...).Ways[0]
		if w.Verdict != test.want || !strings.Contains(w.Reason, test.reason) {
			t.Errorf("%s: %s: %s; want %s: %s", test.name, w.Verdict, w.Reason, test.want, test.reason)
		}
	}
}

func TestANamespaceThatDoesNotForwardDropsWhatIsNotForIt(t *testing.T) {
	t.Parallel()
	for on, want := range map[bool]trace.Outcome{true: trace.Accepted, false: trace.Dropped} {
		r := routed
		r.Forwarding = map[trace.Family]bool{trace.IP: on}
		if w := walked(t, came, r, "*filter").Ways[0]; w.Verdict != want {
			t.Errorf("forwarding %t: %s: %s", on, w.Verdict, w.Reason)
		}
	}
}
