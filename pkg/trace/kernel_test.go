package trace

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// everywhere are packets to everyone; the outcomes mean nothing.
const everywhere = `
	out 1.1.1.1:80 -> app
	out 1.1.1.1:80 uid=1337 gid=1337 -> app
	out [2001:db8::1]:80 -> app
	out 127.0.0.1:80 -> app
	out [::1]:80 uid=1337 -> app
	out 127.0.0.1:80 uid=1337 -> app
	out 10.77.0.2:80 -> app
	out 10.77.0.2:80 uid=1337 -> app
	out [fd77::2]:80 -> app
	in 80 -> app
	out udp 1.1.1.1:53 -> app
	out udp 127.0.0.153:53 -> app
`

func parse(t *testing.T, text string) []nettest.Packet {
	t.Helper()
	packets, err := nettest.ParsePackets(text)
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// The kernel is the oracle: each packet ends where the walk says, through the rules that the walk says.
func TestKernelAgrees(t *testing.T) {
	raw, mangle := rules.Raw, rules.Mangle
	pre, output := rules.Prerouting, rules.Output
	web := rules.Destination{Prefixes: prefixes("1.1.1.1/32 2001:db8::1/128")}
	inbound := rule(pre, rules.Redirect(15003), rules.TCP)
	toProxy := rule(output, rules.Redirect(15001), rules.TCP, web)
	// TPROXY must not take the answers to the pod's own connections.
	tproxy := in(mangle, pre, rules.TProxy{Port: 15006, Mark: 1337}, rules.TCP, rules.DstPort{Port: 80})
	osm := redirect.OSM{
		Chains:    redirect.Chains{Inbound: "IN", InboundRedirect: "IN_R", Outbound: "OUT", OutboundRedirect: "OUT_R"},
		Proxy:     redirect.Proxy{UID: proxyID, Inbound: 15003, Outbound: 15001, Admin: 15000, DNS: 5300},
		SelfCalls: true,
		LocalDNS:  netip.MustParseAddr("127.0.0.153"),
		PodIPs:    []netip.Addr{nettest.PodIPv4, nettest.PodIPv6},
	}
	for name, rs := range map[string]rules.Ruleset{
		"none":                    set(),
		"osm":                     osm.Ruleset(),
		"inbound only":            set(inbound),
		"both":                    set(inbound, toProxy),
		"accept ends a table":     set(in(raw, output, rules.Accept{}), in(raw, output, rules.Drop{}), in(mangle, output, rules.Accept{}), in(mangle, output, rules.Drop{}), toProxy, rule(output, rules.Redirect(15003), rules.TCP)),
		"return ends a table too": set(rule(output, rules.Return{}, rules.OwnerUID{ID: 1000}), rule(output, rules.Redirect(15001), rules.TCP)),
		"chains": set(rule(output, rules.Jump("A")), rule("A", rules.Jump("B"), rules.OwnerGID{ID: 1000}), rule("B", rules.Return{}, web),
			rule("B", rules.Accept{}), rule("A", rules.Redirect(15001), rules.TCP)),
		"owner of none":              set(rule(output, rules.Redirect(15001), rules.TCP, rules.OwnerUID{ID: 1000, Not: true}, rules.OwnerGID{ID: 1000, Not: true})),
		"lo comes in past nat":       set(toProxy, inbound, in(mangle, pre, rules.Drop{}, rules.Destination{Prefixes: prefixes("127.0.0.1/32")}, rules.InInterface("lo"), rules.TCP, rules.DstPort{Port: 80})),
		"drop on lo":                 set(toProxy, in(raw, pre, rules.Drop{}, rules.InInterface("lo"), rules.TCP, rules.DstPort{Port: 15001})),
		"raw has no state":           set(toProxy, in(raw, output, rules.Drop{}, web, rules.CTState{New}), in(raw, pre, rules.Drop{}, rules.InInterface("lo"), rules.TCP, rules.CTState{rules.Invalid})),
		"raw has a state on lo":      set(toProxy, in(raw, pre, rules.Drop{}, rules.InInterface("lo"), rules.TCP, rules.CTState{New}, rules.DstPort{Port: 15001})),
		"a zone is a state":          set(toProxy, in(raw, output, rules.Zone(1)), in(raw, pre, rules.Zone(1)), in(raw, output, rules.Zone(2)), in(raw, output, rules.Drop{}, web, rules.CTState{New}, rules.OwnerUID{ID: 1000})),
		"translated":                 set(rule(output, rules.DNAT{Addr: netip.MustParseAddr("2.2.2.2")}, web), rule(output, rules.DNAT{Addr: nettest.PodIPv6, Port: 80}, web, rules.TCP)),
		"inbound translated":         set(rule(pre, rules.DNAT{Addr: nettest.PodIPv4, Port: 15003}, rules.TCP)),
		"an interface has its hooks": set(rule(output, rules.Jump("A")), rule(pre, rules.Jump("A")), rule("A", rules.Redirect(15001), rules.InInterface("eth0"), rules.TCP), rule("A", rules.Redirect(15003), rules.OutInterface("eth0"), rules.TCP)),
		"marks": set(in(mangle, output, rules.SetMark(5), rules.OwnerUID{ID: 1000}), in(mangle, output, rules.SaveMark{}), in(mangle, output, rules.SetMark(0)),
			rule(output, rules.Redirect(15001), rules.TCP, rules.ConnMark(5), rules.Mark{Value: 5, Not: true}), rule(output, rules.Redirect(15003), rules.TCP, rules.Mark{Value: 0})),
		"the mark of the connection": set(in(mangle, output, rules.SetMark(5), rules.OwnerUID{ID: 1000}), in(mangle, output, rules.SaveMark{}), in(mangle, pre, rules.SetMark(0), rules.InInterface("lo")),
			in(mangle, pre, rules.RestoreMark{}, rules.ConnMark(5)), in(mangle, pre, rules.Drop{}, rules.InInterface("lo"), rules.TCP, rules.Mark{Value: 5}, rules.DstPort{Port: 80}), toProxy),
		"tproxy":         set(tproxy, in(mangle, pre, rules.Drop{}, rules.TCP, rules.DstPort{Port: 80})),
		"tproxy and nat": set(tproxy, inbound),
		"tproxy and nat, and not the later packets": set(in(mangle, pre, rules.Accept{}, rules.CTState{rules.Established}), tproxy, inbound),
		"tproxy and translation":                    set(tproxy, rule(pre, rules.DNAT{Addr: nettest.PodIPv4, Port: 80}, rules.TCP), toProxy),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forEachKernel(t, func(t *testing.T, k kernel, _ int) {
				p := newPod(t, k)
				p.program(t, rs)
				for _, difference := range p.differences(t, parse(t, everywhere)) {
					t.Error(difference)
				}
			})
		})
	}
}

// A walk through other rules than the kernel's must be noticed: by where a packet ends, and by the rules it met.
func TestDifferencesAreFound(t *testing.T) {
	forEachKernel(t, func(t *testing.T, k kernel, _ int) {
		p := newPod(t, k)
		p.program(t, set(rule(rules.Output, rules.Redirect(15001), rules.TCP, rules.DstPort{Port: 80})))
		packets := parse(t, "out 1.1.1.1:80 -> app")
		if found := p.differences(t, packets); found != nil {
			t.Error(found)
		}
		p.rs = set(rule(rules.Output, rules.Redirect(15003), rules.TCP, rules.DstPort{Port: 80}))
		if found := strings.Join(p.differences(t, packets), "\n"); !strings.Contains(found, "out 1.1.1.1:80: the kernel says proxy 15001, the walk says proxy 15003") {
			t.Error(found)
		}
		if !k.counts {
			return
		}
		p.rs = set(rule(rules.Output, rules.Return{}, rules.UDP), rule(rules.Output, rules.Redirect(15001), rules.TCP))
		if found := strings.Join(p.differences(t, packets), "\n"); !strings.Contains(found, "IPv4: the kernel matched rule OUTPUT 1 3 times, the walks 0 times") {
			t.Error(found)
		}
	})
}

// The scenarios' packets end where the scenarios want them to, without a kernel.
func TestEveryCase(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		if c.Section("want.nft") == "" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			decision, err := c.Decide(t)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(decision.Families, rules.Families) {
				t.Skip("a walk is through one ruleset for both families")
			}
			rs := decision.Policy.Ruleset()
			gateOpen := false
			for _, n := range parse(t, c.Section("packets")) {
				got, paths, err := predict(rs, n, decision.Policy.Sidecar().Listeners(), gateOpen)
				gateOpen = gateOpen || slices.ContainsFunc(paths, func(p Path) bool { return p.Verdict.GateOpen })
				if err != nil || got != n.Want.String() {
					t.Errorf("%s: %v, the walk says %s\n%v", n, err, got, paths)
				}
			}
		})
	}
}
