package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

// A match or target of a type that this package has never heard of: each has the methods of the interface within it.
type (
	strangeMatch  struct{ rules.Match }
	strangeTarget struct{ rules.Target }
)

// What isn't known is an error, wherever it stands: nothing is matched or missed in silence.
func TestWalkRefuses(t *testing.T) {
	ok := rule(rules.Output, rules.Return{})
	ports := func(n int) []uint16 { return make([]uint16, n) }
	for want, list := range map[string][]rules.Rule{
		"match trace.strangeMatch is not known":          {rule(rules.Output, rules.Return{}, strangeMatch{})},
		"match <nil> is not known":                       {rule(rules.Output, rules.Return{}, nil)},
		"target trace.strangeTarget is not known":        {ok, rule(rules.Output, strangeTarget{}, rules.UDP)},
		"target <nil> is not known":                      {rule(rules.Output, nil)},
		"jumps to GONE, which is no chain":               {rule(rules.Output, rules.Jump("GONE"))},
		"jumps to OUTPUT, which is no chain":             {rule(rules.Prerouting, rules.Jump("OUTPUT"))},
		"jumps to SUB, which is no chain":                {rule(rules.Output, rules.Jump("SUB")), in(rules.Raw, "SUB", rules.Return{})},
		"more than 16 jumps deep":                        {rule(rules.Output, rules.Jump("A")), rule("A", rules.Jump("B")), rule("B", rules.Jump("A"))},
		"the table is not known":                         {in("filter", rules.Output, rules.Accept{})},
		"rules.Redirect is a target of table nat only":   {in(rules.Mangle, rules.Output, rules.Redirect(1), rules.TCP)},
		"rules.DNAT is a target of table nat only":       {in(rules.Raw, rules.Output, rules.DNAT{Addr: podAddrs[0]})},
		"rules.TProxy is a target of table mangle only":  {rule(rules.Prerouting, rules.TProxy{}, rules.TCP)},
		"TPROXY works in PREROUTING only":                {in(rules.Mangle, rules.Output, rules.TProxy{}, rules.TCP)},
		"rules.Zone is a target of table raw only":       {rule(rules.Output, rules.Zone(1))},
		"table nat can't drop":                           {rule(rules.Output, rules.Drop{})},
		"rules.Redirect needs a match on the protocol":   {rule(rules.Output, rules.Redirect(1))},
		"rules.DNAT needs a match on the protocol":       {rule(rules.Output, rules.DNAT{Addr: podAddrs[0], Port: 1})},
		"rules.DstPort needs a protocol ahead":           {rule(rules.Output, rules.Return{}, rules.DstPort{Port: 1}, rules.TCP)},
		"this chain has nothing that rules.InInterface":  {rule(rules.Output, rules.Return{}, rules.InInterface("lo"))},
		"this chain has nothing that rules.OutInterface": {rule(rules.Prerouting, rules.Return{}, rules.OutInterface("lo"))},
		"rules.Destination may exclude one range":        {rule(rules.Output, rules.Return{}, rules.Destination{Prefixes: prefixes("1.1.1.1/32 2.2.2.2/32"), Not: true})},
		"rules.DstPorts may exclude 15 ports":            {rule(rules.Output, rules.Return{}, rules.TCP, rules.DstPorts{Ports: ports(16), Not: true})},
		"PREROUTING has no owner to match":               {in(rules.Mangle, rules.Prerouting, rules.Return{}, rules.OwnerUID{ID: 1})},
		"chain SUB: PREROUTING has no owner to match":    {in(rules.Raw, rules.Prerouting, rules.Jump("SUB")), in(rules.Raw, "SUB", rules.Return{}, rules.OwnerGID{ID: 1, Not: true})},
	} {
		if _, err := Walk(set(list...), out("127.0.0.1:80")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	rs := set(rule("SUB", rules.Return{}))
	rs.Chains = nil
	if _, err := Walk(rs, out("1.1.1.1:80")); err == nil || !strings.Contains(err.Error(), "chain SUB: the ruleset has rules for the chain but") {
		t.Error(err)
	}
}

func TestWalkRefusesPackets(t *testing.T) {
	for want, change := range map[string]func(*Packet){
		"neither out nor in":                   func(p *Packet) { p.Direction = 0 },
		"must be addresses of one family":      func(p *Packet) { p.Src = netip.MustParseAddrPort("[::1]:1") },
		"source and destination":               func(p *Packet) { p.Dst = netip.AddrPort{} },
		"a protocol and an interface":          func(p *Packet) { p.Protocol = "" },
		"a protocol and an interface are need": func(p *Packet) { p.Interface = "" },
	} {
		if _, err := Walk(set(), with(out("1.1.1.1:80"), change)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
