package trace

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

// prefixes parses ranges that stand apart by blanks.
func prefixes(list string) []netip.Prefix {
	var out []netip.Prefix
	for word := range strings.FieldsSeq(list) {
		out = append(out, netip.MustParsePrefix(word))
	}
	return out
}

// rule makes a rule of table nat.
func rule(chain string, target rules.Target, m ...rules.Match) rules.Rule {
	return in(rules.Nat, chain, target, m...)
}

func in(t rules.Table, chain string, target rules.Target, m ...rules.Match) rules.Rule {
	return rules.Rule{Chain: rules.Chain{Table: t, Name: chain}, Matches: m, Target: target, Why: "it is tested"}
}

// set makes a ruleset of rules, with the chains that these are in.
func set(list ...rules.Rule) rules.Ruleset {
	rs := rules.Ruleset{Rules: list}
	seen := map[rules.Chain]bool{}
	for _, r := range list {
		if !r.Chain.Base() && !seen[r.Chain] {
			seen[r.Chain] = true
			rs.Chains = append(rs.Chains, r.Chain)
		}
	}
	return rs
}

// podAddrs are eth0's addresses.
var podAddrs = []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}

// out is a TCP packet of UID 1000 and GID 100; in6 and such are made of it by the tests.
func out(dst string) Packet {
	p := Packet{
		Direction: Out, Protocol: rules.TCP, Dst: netip.MustParseAddrPort(dst), Interface: "eth0", Local: map[string][]netip.Addr{"eth0": podAddrs, "vm0": {netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}}, UID: 1000, GID: 100,
	}
	p.Src = netip.AddrPortFrom(podAddrs[0], 40000)
	if p.Dst.Addr().Is6() {
		p.Src = netip.AddrPortFrom(podAddrs[1], 40000)
	}
	return p
}

// into is a TCP packet from outside.
func into(dst string) Packet {
	p := out(dst)
	p.Direction, p.UID, p.GID = In, 0, 0
	p.Src = netip.MustParseAddrPort("10.0.0.1:40000")
	if p.Dst.Addr().Is6() {
		p.Src = netip.MustParseAddrPort("[fd00::1]:40000")
	}
	return p
}

func with(p Packet, change func(*Packet)) Packet {
	change(&p)
	return p
}

// toProxy redirects if the matches hold: then a test can tell.
func toProxy(m ...rules.Match) rules.Ruleset {
	r := rule(rules.Output, rules.Redirect(15001), append([]rules.Match{rules.TCP}, m...)...)
	return set(r)
}

func verdict(t *testing.T, rs rules.Ruleset, p Packet) string {
	t.Helper()
	path, err := Walk(rs, p)
	if err != nil {
		t.Errorf("%s: %v", p, err)
	}
	return path.Verdict.String()
}

func TestMatches(t *testing.T) {
	web, web6 := out("1.1.1.1:80"), out("[2001:db8::1]:80")
	from := func(src string) Packet {
		return with(web, func(p *Packet) { p.Src = netip.MustParseAddrPort(src) })
	}
	marked := with(web, func(p *Packet) { p.Mark, p.ConnMark = 7, 8 })
	kernels := with(web, func(p *Packet) { p.NoSocket = true })
	ranges := prefixes("1.1.1.0/24 2.2.2.2/32 2001:db8::/64")
	for _, c := range []struct {
		name     string
		match    rules.Match
		yes, not []Packet
	}{
		{"source", rules.Source{Prefixes: prefixes("10.0.0.0/30 fd00::2/128")}, []Packet{web, web6, from("10.0.0.3:1")}, []Packet{from("10.0.0.4:1")}},
		{"source of one family", rules.Source{Prefixes: prefixes("::/0")}, []Packet{web6}, []Packet{web}},
		{"destination", rules.Destination{Prefixes: ranges},
			[]Packet{out("1.1.1.0:80"), out("1.1.1.255:80"), out("2.2.2.2:1"), web6}, []Packet{out("1.1.2.0:80"), out("1.1.0.255:80"), out("[2001:db8:0:1::]:80")}},
		{"no destination", rules.Destination{Prefixes: prefixes("1.1.1.0/24 2001:db8::/64"), Not: true},
			[]Packet{out("1.1.2.0:80"), out("[2001:db8:0:1::]:80")}, []Packet{web, web6}},
		{"no destination, other family", rules.Destination{Prefixes: prefixes("1.1.1.1/32"), Not: true}, []Packet{out("1.1.1.2:80")}, []Packet{web6}},
		{"IPv4 in IPv6 form", rules.Destination{Prefixes: prefixes("1.1.1.1/32")}, []Packet{with(web, func(p *Packet) {
			p.Src, p.Dst = netip.MustParseAddrPort("[::ffff:10.0.0.2]:1"), netip.MustParseAddrPort("[::ffff:1.1.1.1]:80")
		})}, nil},
		{"out interface", rules.OutInterface("eth0"), []Packet{web}, []Packet{out("127.0.0.1:80"), out("10.0.0.2:80"), out("[fd00::2]:80")}},
		{"out on lo", rules.OutInterface("lo"), []Packet{out("127.3.3.3:80"), out("10.0.0.2:80"), out("[::1]:80")}, []Packet{web, web6}},
		{"protocol", rules.TCP, []Packet{web}, []Packet{with(web, func(p *Packet) { p.Protocol = rules.UDP })}},
		{"source port", rules.SrcPort(40000), []Packet{web}, []Packet{from("10.0.0.2:40001")}},
		{"port", rules.DstPort{Port: 80}, []Packet{web}, []Packet{out("1.1.1.1:81")}},
		{"no port", rules.DstPort{Port: 80, Not: true}, []Packet{out("1.1.1.1:81")}, []Packet{web}},
		{"ports", rules.DstPorts{Ports: []uint16{80, 90}}, []Packet{web, out("1.1.1.1:90")}, []Packet{out("1.1.1.1:81")}},
		{"none of the ports", rules.DstPorts{Ports: []uint16{80, 90}, Not: true}, []Packet{out("1.1.1.1:81")}, []Packet{web, out("1.1.1.1:90")}},
		{"no ports at all", rules.DstPorts{}, nil, []Packet{web}},
		{"user", rules.OwnerUID{ID: 1000}, []Packet{web}, []Packet{with(web, func(p *Packet) { p.UID = 1001 }), kernels}},
		{"not the user", rules.OwnerUID{ID: 1000, Not: true}, []Packet{with(web, func(p *Packet) { p.UID = 1001 }), kernels}, []Packet{web}},
		{"group", rules.OwnerGID{ID: 100}, []Packet{web}, []Packet{with(web, func(p *Packet) { p.GID = 1000 }), kernels}},
		{"not the group", rules.OwnerGID{ID: 100, Not: true}, []Packet{with(web, func(p *Packet) { p.GID = 1000 }), kernels}, []Packet{web}},
		{"mark", rules.Mark{Value: 7}, []Packet{marked}, []Packet{web}},
		{"not the mark", rules.Mark{Value: 7, Not: true}, []Packet{web}, []Packet{marked}},
		{"connection's mark", rules.ConnMark(8), []Packet{marked}, []Packet{web}},
		{"state", rules.CTState{rules.Related, New}, []Packet{web, with(web, func(p *Packet) { p.State = rules.Related })}, nil},
		{"other state", rules.CTState{rules.Related}, nil, []Packet{web}},
	} {
		rs := toProxy(c.match)
		for _, p := range c.yes {
			if got := verdict(t, rs, p); got != "redirected to port 15001" {
				t.Errorf("%s: %s: %s", c.name, p, got)
			}
		}
		for _, p := range c.not {
			if got := verdict(t, rs, p); !strings.HasPrefix(got, "direct to") {
				t.Errorf("%s: %s: %s", c.name, p, got)
			}
		}
	}
}

func TestInInterface(t *testing.T) {
	rs := set(rule(rules.Prerouting, rules.Redirect(15003), rules.InInterface("eth0"), rules.TCP))
	p := into("10.0.0.2:80")
	if got := verdict(t, rs, p); got != "redirected to port 15003" {
		t.Error(got)
	}
	p.Interface = "net1"
	if got := verdict(t, rs, p); got != "direct to 10.0.0.2:80, in the pod" {
		t.Error(got)
	}
}

func TestTargets(t *testing.T) {
	web := out("1.1.1.1:80")
	proxy := rule(rules.Output, rules.Redirect(15001), rules.TCP)
	sub := func(target rules.Target) []rules.Rule {
		return []rules.Rule{rule(rules.Output, rules.Jump("SUB")), rule("SUB", target), proxy}
	}
	for name, c := range map[string]struct {
		rs   rules.Ruleset
		p    Packet
		want string
	}{
		"no rules":                                {set(), web, "direct to 1.1.1.1:80, outside the pod"},
		"no rules, own address":                   {set(), out("10.0.0.2:80"), "direct to 10.0.0.2:80, in the pod"},
		"return to the next rule of the caller":   {set(sub(rules.Return{})...), web, "redirected to port 15001"},
		"the end of a chain is a return":          {set(sub(rules.SetMark(1))...), web, "redirected to port 15001"},
		"accept is the end of the table":          {set(sub(rules.Accept{})...), web, "direct to 1.1.1.1:80, outside the pod"},
		"return in a base chain is too":           {set(rule(rules.Output, rules.Return{}), proxy), web, "direct to 1.1.1.1:80, outside the pod"},
		"accept is not the end of the next table": {set(in(rules.Raw, rules.Output, rules.Accept{}), in(rules.Mangle, rules.Output, rules.Accept{}), proxy), web, "redirected to port 15001"},
		"the first redirect counts":               {set(proxy, rule(rules.Output, rules.Redirect(15002), rules.TCP)), web, "redirected to port 15001"},
		"chains call chains": {set(rule(rules.Output, rules.Jump("A")), rule("A", rules.Jump("B")), rule("B", rules.Jump("C")),
			rule("C", rules.Return{}), rule("B", rules.Return{}), rule("A", rules.Redirect(3), rules.TCP), proxy), web, "redirected to port 3"},
		"drop in mangle":                        {set(in(rules.Mangle, rules.Output, rules.Drop{}), proxy), web, "dropped"},
		"drop in raw on the way back in":        {set(in(rules.Raw, rules.Prerouting, rules.Drop{}, rules.InInterface("lo")), proxy), web, "dropped"},
		"dnat":                                  {set(rule(rules.Output, rules.DNAT{Addr: netip.MustParseAddr("2.2.2.2")})), web, "translated to 2.2.2.2:80, outside the pod"},
		"dnat to a port":                        {set(rule(rules.Output, rules.DNAT{Addr: podAddrs[0], Port: 81}, rules.TCP)), web, "translated to 10.0.0.2:81, in the pod"},
		"dnat of the other family":              {set(rule(rules.Output, rules.DNAT{Addr: podAddrs[1]}), proxy), web, "redirected to port 15001"},
		"nat sees one packet of a connection":   {set(proxy), with(web, func(p *Packet) { p.State = rules.Established }), "direct to 1.1.1.1:80, outside the pod"},
		"nat sees no packet without connection": {set(proxy), with(web, func(p *Packet) { p.State = rules.Invalid }), "direct to 1.1.1.1:80, outside the pod"},
		"a redirected packet comes in on lo, past nat": {set(proxy, rule(rules.Prerouting, rules.Redirect(15003), rules.TCP),
			in(rules.Mangle, rules.Prerouting, rules.SetMark(5), rules.InInterface("lo"), rules.Destination{Prefixes: prefixes("127.0.0.1/32")})), web, "redirected to port 15001"},
		"a call to the own address is not inbound": {set(rule(rules.Prerouting, rules.Redirect(15003), rules.TCP)), out("10.0.0.2:80"), "direct to 10.0.0.2:80, in the pod"},
		"tproxy": {set(in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006, Mark: 9}, rules.TCP)), into("10.0.0.2:80"),
			"handed to the transparent listener at port 15006, for 10.0.0.2:80"},
		"tproxy and nat": {set(in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006}, rules.TCP), rule(rules.Prerouting, rules.Redirect(15003), rules.TCP)),
			into("10.0.0.2:80"), "reset: nat translates what TPROXY has taken"},
		"tproxy and nat, and not the later packets": {set(in(rules.Mangle, rules.Prerouting, rules.Accept{}, rules.CTState{rules.Established}),
			in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006}, rules.TCP), rule(rules.Prerouting, rules.Redirect(15003), rules.TCP)),
			into("10.0.0.2:80"), "handed to the transparent listener at port 15006, for 10.0.0.2:15003"},
		"tproxy and nat that changes nothing": {set(in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006}, rules.TCP), rule(rules.Prerouting, rules.DNAT{Addr: podAddrs[0], Port: 80}, rules.TCP)),
			into("10.0.0.2:80"), "handed to the transparent listener at port 15006, for 10.0.0.2:80"},
		"tproxy of what isn't local": {set(in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006}, rules.TCP)), into("9.9.9.9:80"), "dropped"},
		"tproxy of the other family": {set(in(rules.Mangle, rules.Prerouting, rules.TProxy{Port: 15006, On: netip.IPv6Unspecified()}, rules.TCP)), into("10.0.0.2:80"),
			"direct to 10.0.0.2:80, in the pod"},
		"an interface matches only in its hook": {set(rule(rules.Output, rules.Jump("SUB")), rule("SUB", rules.Redirect(1), rules.InInterface("eth0"), rules.TCP)), web,
			"direct to 1.1.1.1:80, outside the pod"},
	} {
		if got := verdict(t, c.rs, c.p); got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestMarks(t *testing.T) {
	route := rules.Setup{Routes: []rules.LocalRoute{{Mark: 1337, Table: 133}}}
	raw, mangle := rules.Raw, rules.Mangle
	for name, c := range map[string]struct {
		rules          []rules.Rule
		change         func(*Packet)
		mark, connMark uint32
		zone           uint16
		local          bool
	}{
		"set":                      {rules: []rules.Rule{in(mangle, rules.Output, rules.SetMark(5))}, mark: 5},
		"save":                     {rules: []rules.Rule{in(mangle, rules.Output, rules.SetMark(5)), in(mangle, rules.Output, rules.SaveMark{})}, mark: 5, connMark: 5},
		"restore":                  {rules: []rules.Rule{in(mangle, rules.Output, rules.RestoreMark{})}, change: func(p *Packet) { p.ConnMark = 6 }, mark: 6, connMark: 6},
		"raw has no connection":    {rules: []rules.Rule{in(raw, rules.Output, rules.RestoreMark{}, rules.CTState{rules.Invalid}), in(raw, rules.Output, rules.SetMark(9), rules.ConnMark(6))}, change: func(p *Packet) { p.ConnMark = 6 }, connMark: 6},
		"raw has no state":         {rules: []rules.Rule{in(raw, rules.Output, rules.SetMark(1), rules.CTState{New}), in(raw, rules.Output, rules.SetMark(2), rules.CTState{rules.Invalid})}, mark: 2},
		"the first zone counts":    {rules: []rules.Rule{in(raw, rules.Output, rules.Zone(1)), in(raw, rules.Output, rules.Zone(2))}, zone: 1},
		"a zone is a state in raw": {rules: []rules.Rule{in(raw, rules.Output, rules.Zone(1)), in(raw, rules.Output, rules.SetMark(2), rules.CTState{New})}, zone: 1, mark: 2},
		"a local route turns the packet round": {rules: []rules.Rule{
			in(mangle, rules.Output, rules.SetMark(1337)), in(mangle, rules.Prerouting, rules.SetMark(3), rules.InInterface("lo"), rules.Mark{Value: 1337}),
			in(raw, rules.Prerouting, rules.Zone(4), rules.InInterface("lo"))}, mark: 3, local: true},
		"the out interface is that of the first route": {rules: []rules.Rule{
			in(mangle, rules.Output, rules.SetMark(1337)), rule(rules.Output, rules.SetMark(3), rules.OutInterface("eth0"))}, mark: 3},
	} {
		rs := set(c.rules...)
		rs.Setup = route
		p := out("1.1.1.1:80")
		if c.change != nil {
			c.change(&p)
		}
		path, err := Walk(rs, p)
		v := path.Verdict
		if err != nil || v.Mark != c.mark || v.ConnMark != c.connMark || v.Zone != c.zone || v.Local != c.local || v.Kind != Direct {
			t.Errorf("%s: %v\n%+v\n%s", name, err, v, path)
		}
	}
}

func TestVerdictTellsWhere(t *testing.T) {
	proxy := set(rule(rules.Output, rules.Redirect(15001), rules.TCP), rule(rules.Prerouting, rules.Redirect(15003), rules.TCP))
	proxy.Setup.Loopback = prefixes("::6/128")
	for want, p := range map[string]Packet{
		"127.0.0.1:15001": out("1.1.1.1:80"),
		"[::1]:15001":     out("[2001:db8::1]:80"),
		"10.0.0.2:15003":  into("10.0.0.2:80"),
		"[fd00::2]:15003": into("[fd00::2]:80"),
	} {
		path, err := Walk(proxy, p)
		if v := path.Verdict; err != nil || v.Addr.String() != want || !v.Local || v.Kind != Redirected {
			t.Errorf("%s: %v, %+v", want, err, v)
		}
	}
	// What passes through, as from a virtual machine, is redirected to the address of the interface.
	for _, dst := range []string{"[2001:db8::1]:80", "[fd00::2]:80"} {
		path, err := Walk(proxy, with(into(dst), func(p *Packet) { p.Interface = "vm0" }))
		if v := path.Verdict; err != nil || v.Addr.String() != "[fd09::1]:15003" || !v.Local {
			t.Errorf("%s: %v, %+v", dst, err, v)
		}
	}
	// lo's added address is the pod's own.
	path, err := Walk(set(), out("[::6]:80"))
	if err != nil || path.Verdict.Local {
		t.Errorf("%v, %+v", err, path.Verdict)
	}
	path, err = Walk(rules.Ruleset{Setup: proxy.Setup}, out("[::6]:80"))
	if err != nil || !path.Verdict.Local {
		t.Errorf("%v, %+v", err, path.Verdict)
	}
}
