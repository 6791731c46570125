package advice

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
)

// saved is the text of iptables-save for one table with these lines.
func saved(name string, lines ...string) string {
	return "*" + name + "\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
}

func namespace(t *testing.T, text string) *trace.Namespace {
	t.Helper()
	ns := &trace.Namespace{Routing: trace.Routing{Routes: []trace.Route{
		{Type: "unicast", Dst: netip.MustParsePrefix("10.224.2.0/24"), Nexthops: []trace.Nexthop{{Dev: "cni0"}}},
	}}}
	var err error
	if strings.HasPrefix(text, "{") {
		ns.Tables, err = nftjson.Read([]byte(text))
	} else {
		ns.Tables, err = iptsave.Read([]byte(text), trace.IP, iptsave.Unnamed, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

var (
	out = trace.Packet{
		Direction: trace.Out, Protocol: unix.IPPROTO_TCP, ToInterface: "eth0",
		Src: netip.MustParseAddrPort("10.1.0.2:40000"), Dst: netip.MustParseAddrPort("10.0.0.6:7000"),
	}
	forwarded = trace.Packet{
		Direction: trace.In, Interface: "flannel.1", Protocol: unix.IPPROTO_TCP, ToInterface: "cni0",
		Src: netip.MustParseAddrPort("10.224.0.0:40000"), Dst: netip.MustParseAddrPort("10.224.2.16:80"),
	}
)

func TestTheSentence(t *testing.T) {
	osm := saved("nat", ":PROXY_OUTPUT - [0:0]", ":PROXY_REDIRECT - [0:0]", "-A OUTPUT -p tcp -j PROXY_OUTPUT",
		"-A PROXY_OUTPUT -p tcp -m multiport --dports 7001 -j RETURN", "-A PROXY_OUTPUT -j PROXY_REDIRECT", "-A PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 15001")
	istio := strings.NewReplacer("PROXY_OUTPUT", "ISTIO_OUTPUT", "PROXY_REDIRECT", "ISTIO_REDIRECT").Replace(osm)
	unrouted := out
	unrouted.ToInterface = ""
	excluded := out
	excluded.Dst = netip.MustParseAddrPort("10.0.0.6:7001")
	for _, test := range []struct {
		name, text string
		packet     trace.Packet
		want       string
	}{
		{"redirected by OSM's rules", osm, out, "redirected to the proxy's outbound listener 15001 by PROXY_REDIRECT rule 1 of table nat; to bypass the proxy, add 7000 to " +
			"spec.traffic.outboundPortExclusionList of MeshConfig osm-system/osm-mesh-config or to the pod's annotation openservicemesh.io/outbound-port-exclusion-list and restart the pod"},
		{"redirected by istio's", istio, out, "redirected to the proxy's outbound listener 15001 by ISTIO_REDIRECT rule 1 of table nat; to bypass the proxy, add 7000 to " +
			"the pod's annotation traffic.sidecar.istio.io/excludeOutboundPorts and restart the pod"},
		{"redirected by nobody's", saved("nat", "-A OUTPUT -p tcp -j REDIRECT --to-ports 99"), out, "redirected to port 99 by OUTPUT rule 1 of table nat"},
		{"excluded", osm, excluded, "accepted: the packet leaves by eth0, to 10.0.0.6:7001; PROXY_OUTPUT rule 1 of table nat decided (-p tcp -m multiport --dports 7001 -j RETURN)"},
		{"dropped by a policy", saved("filter", ":FORWARD DROP [0:0]", "-A FORWARD -d 10.244.0.0/16 -j ACCEPT", "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"), forwarded,
			"dropped by the policy of FORWARD in table filter: no rule accepts -i flannel.1 -o cni0; `iptables -A FORWARD -i flannel.1 -d 10.224.2.0/24 -j ACCEPT` would"},
		{"dropped by a policy of nft", `{"nftables":[{"table":{"family":"inet","name":"fw"}},
			{"chain":{"family":"inet","table":"fw","name":"fwd","type":"filter","hook":"forward","prio":0,"policy":"drop"}},
			{"rule":{"family":"inet","table":"fw","chain":"fwd","handle":2,"expr":[{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"established"}},{"accept":null}]}}]}`, forwarded,
			"dropped by the policy of fwd in table inet fw: no rule accepts iifname \"flannel.1\" oifname \"cni0\"; `nft add rule inet fw fwd iifname \"flannel.1\" ip daddr 10.224.2.0/24 accept` would"},
		{"the answers' way is closed, too", saved("filter", ":FORWARD DROP [0:0]", "-A FORWARD -i eth0 -j ACCEPT"), forwarded,
			"dropped by the policy of FORWARD in table filter: no rule accepts -i flannel.1 -o cni0; `iptables -A FORWARD -i flannel.1 -d 10.224.2.0/24 -j ACCEPT` would; " +
				"its answers would be dropped by the policy of FORWARD in table filter: no rule accepts -i cni0 -o flannel.1; `iptables -A FORWARD -i cni0 -d 10.224.0.0 -j ACCEPT` would"},
		{"only the answers' way is closed", saved("filter", ":FORWARD DROP [0:0]", "-A FORWARD -i flannel.1 -j ACCEPT"), forwarded,
			"accepted: the packet leaves by cni0, to 10.224.2.16:80; FORWARD rule 1 of table filter decided (-i flannel.1 -j ACCEPT); " +
				"its answers would be dropped by the policy of FORWARD in table filter: no rule accepts -i cni0 -o flannel.1; `iptables -A FORWARD -i cni0 -d 10.224.0.0 -j ACCEPT` would"},
		{"dropped by a policy where no interface is known", saved("filter", ":OUTPUT DROP [0:0]"), unrouted,
			"dropped by the policy of OUTPUT in table filter: no rule accepts it; `iptables -A OUTPUT -d 10.0.0.6 -j ACCEPT` would"},
		{"dropped by a rule", saved("filter", `-A OUTPUT -p tcp -m comment --comment "no redis" -j DROP`), out,
			"dropped by OUTPUT rule 1 of table filter (-p tcp -j DROP): no redis; change that rule, or accept the packet ahead of it"},
		{"a dormant table drops nothing", `{"nftables":[{"table":{"family":"inet","name":"fw","flags":["dormant"]}},
			{"chain":{"family":"inet","table":"fw","name":"out","type":"filter","hook":"output","prio":0,"policy":"drop"}}]}`, out,
			"accepted: the packet leaves by eth0, to 10.0.0.6:7000"},
		{"a Service without endpoints", saved("filter", `-A OUTPUT -d 10.0.0.6/32 -m comment --comment "shop/redis has no endpoints" -j REJECT`), out,
			"rejected by OUTPUT rule 1 of table filter (-d 10.0.0.6/32 -j REJECT): shop/redis has no endpoints; look at the readiness of the Service's pods"},
		{"no rule at all", "*filter\nCOMMIT\n", out, "accepted: the packet leaves by eth0, to 10.0.0.6:7000"},
		{"unknown, and it matters", saved("filter", "-A OUTPUT -m foo --bar 1 -j DROP"), out,
			"not known: it is not known whether -m foo --bar 1 matches (OUTPUT rule 1 of table filter: -m foo --bar 1 -j DROP); if it matches, it is dropped by OUTPUT rule 1 of table filter; " +
				"if it does not match, it is accepted by the policy of OUTPUT in table filter"},
		{"unknown, and it doesn't matter", saved("filter", "-A OUTPUT -m foo --bar 1 -j LOG"), out, "accepted: the packet leaves by eth0, to 10.0.0.6:7000"},
		{"unknown, with the same end", saved("filter", ":FOO - [0:0]", "-A OUTPUT -m foo --bar 1 -j FOO"), out, "accepted: the packet leaves by eth0, to 10.0.0.6:7000"},
		{"an unknown target", saved("filter", "-A OUTPUT -j FOO --bar 1"), out, "not known: it is not known what -j FOO --bar 1 does (OUTPUT rule 1 of table filter: -j FOO --bar 1); " +
			"if it lets the packet go on, it is accepted by the policy of OUTPUT in table filter; if it ends the packet, that is not known either"},
		{"by chance", saved("filter", "-A OUTPUT -m statistic --mode random --probability 0.25 -j DROP"), out,
			"on 1 of 2 ways, which take 25 % of the connections, dropped by OUTPUT rule 1 of table filter (-m statistic --mode random --probability 0.25 -j DROP); change that rule, or accept the packet ahead of it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := namespace(t, test.text)
			r, err := trace.Walk(ns, test.packet)
			if err != nil {
				t.Fatal(err)
			}
			if got := Of(ns, r); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// The same condition has the same answer all along the way, and conditions of chance and of ignorance don't mix.
func TestWaysOfSeveralConditions(t *testing.T) {
	ns := namespace(t, saved("filter", "-A OUTPUT -m foo --bar 1 -j LOG", "-A OUTPUT -m foo --bar 1 -j MARK --set-xmark 1",
		"-A OUTPUT -m statistic --mode random --probability 0.5 -j ACCEPT", "-A OUTPUT -m foo --bar 1 -j DROP"))
	r, err := trace.Walk(ns, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Ways) != 1 || r.Ways[0].Verdict != trace.Unknown || len(r.Ways[0].Outcomes) != 4 {
		t.Fatalf("%+v", r.Ways)
	}
	var got []string
	sum := 0.0
	for _, o := range r.Ways[0].Outcomes {
		got = append(got, string(o.Verdict))
		sum += o.Probability
	}
	if want := []string{"accepted", "dropped", "accepted", "accepted"}; !slices.Equal(got, want) || sum != 2 {
		t.Errorf("got %q with %v, want %q with 2: 1 for each answer", got, sum, want)
	}
}

// A condition that does not matter leaves a way that assumes nothing.
func TestAWayThatIsSettledAssumesNothing(t *testing.T) {
	ns := namespace(t, saved("filter", ":FOO - [0:0]", "-A OUTPUT -m foo --bar 1 -j FOO"))
	r, err := trace.Walk(ns, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Ways) != 1 || r.Ways[0].Verdict != trace.Accepted || r.Ways[0].Assumes != "" {
		t.Errorf("%+v", r.Ways)
	}
}

// Each nexthop of a multipath route is a way, as likely as its weight says.
func TestWaysOfAMultipathRoute(t *testing.T) {
	ns := namespace(t, saved("filter", "-A OUTPUT -o eth1 -j DROP"))
	ns.Routing = trace.Routing{
		LinksKnown: true, RoutesKnown: true,
		Links: []trace.Link{{Name: "eth0"}, {Name: "eth1"}},
		Routes: []trace.Route{{Table: "main", Type: "unicast", Dst: netip.MustParsePrefix("10.0.0.0/8"), Nexthops: []trace.Nexthop{
			{Dev: "eth0", Via: netip.MustParseAddr("192.0.2.1"), Weight: 1}, {Dev: "eth1", Via: netip.MustParseAddr("198.51.100.1"), Weight: 3},
		}}},
	}
	p := out
	p.ToInterface = ""
	r, err := trace.Walk(ns, p)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Ways) != 2 || r.Ways[0].Probability != 0.25 || r.Ways[0].Packet.Interface != "eth0" || r.Ways[1].Probability != 0.75 || r.Ways[1].Verdict != trace.Dropped {
		t.Errorf("%+v", r.Ways)
	}
}
