package nftables

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// What becomes one rule, and what must not: the lines of nat's chain CHAIN.
func TestFold(t *testing.T) {
	t.Parallel()
	own := rules.Chain{Table: rules.Nat, Name: "CHAIN"}
	ends, passes := rules.Jump("ENDS"), rules.Jump("PASSES")
	to := func(words string) rules.Match { return rules.Destination{Prefixes: prefixes(words)} }
	at := func(port uint16) rules.Match { return rules.DstPort{Port: port} }
	rule := func(why string, target rules.Target, m ...rules.Match) rules.Rule {
		return rules.Rule{Chain: own, Matches: m, Target: target, Why: why}
	}
	for name, c := range map[string]struct {
		rules []rules.Rule
		want  string
	}{
		"ports": {[]rules.Rule{rule("a", rules.Return{}, rules.TCP, at(2)), rule("a", rules.Return{}, rules.TCP, rules.DstPorts{Ports: []uint16{1, 2}}), rule("b", rules.Return{}, rules.TCP, at(3))}, `
			tcp dport { 1, 2, 3 } return comment "a; b"`},
		"ports of two protocols in turns": {[]rules.Rule{rule("a", rules.Return{}, rules.TCP, at(1)), rule("a", rules.Return{}, rules.UDP, at(1)), rule("a", rules.Return{}, rules.TCP, at(2)), rule("a", rules.Return{}, rules.UDP, at(2))}, `
			tcp dport { 1, 2 } return comment "a"
			udp dport { 1, 2 } return comment "a"`},
		"ranges": {[]rules.Rule{rule("a", ends, to("10.0.0.0/8")), rule("b", ends, to("fd00::/8")), rule("a", ends, to("12.0.0.0/8"))}, `
			ip daddr { 10.0.0.0/8, 12.0.0.0/8 } jump ENDS comment "a; b"
			ip6 daddr fd00::/8 jump ENDS comment "a; b"`},
		"sources of interfaces": {[]rules.Rule{rule("a", rules.Return{}, rules.Source{Prefixes: prefixes("10.0.0.0/8")}, rules.OutInterface("x")), rule("a", rules.Return{}, rules.Source{Prefixes: prefixes("12.0.0.0/8")}, rules.OutInterface("y")),
			rule("a", rules.Return{}, rules.Source{Prefixes: prefixes("14.0.0.0/8")}, rules.OutInterface("x"))}, `
			ip saddr { 10.0.0.0/8, 14.0.0.0/8 } oifname "x" return comment "a"
			ip saddr 12.0.0.0/8 oifname "y" return comment "a"`},
		"not a chain that marks": {[]rules.Rule{rule("a", passes, to("10.0.0.0/8")), rule("a", passes, to("12.0.0.0/8"))}, `
			ip daddr 10.0.0.0/8 jump PASSES comment "a"
			ip daddr 12.0.0.0/8 jump PASSES comment "a"`},
		"not what goes on": {[]rules.Rule{rule("a", rules.SetMark(1), rules.TCP, at(1)), rule("a", rules.SetMark(1), rules.TCP, at(2))}, `
			tcp dport 1 meta mark set 0x00000001 comment "a"
			tcp dport 2 meta mark set 0x00000001 comment "a"`},
		"not different targets": {[]rules.Rule{rule("a", rules.Return{}, rules.TCP, at(1)), rule("a", ends, rules.TCP, at(2)), rule("a", rules.Return{}, rules.TCP, at(3))}, `
			tcp dport 1 return comment "a"
			tcp dport 2 jump ENDS comment "a"
			tcp dport 3 return comment "a"`},
		"not past another": {[]rules.Rule{rule("a", rules.Return{}, rules.TCP, at(1)), rule("a", rules.SetMark(1)), rule("a", rules.Return{}, rules.TCP, at(3))}, `
			tcp dport 1 return comment "a"
			meta mark set 0x00000001 comment "a"
			tcp dport 3 return comment "a"`},
		"not negations": {[]rules.Rule{rule("a", rules.Return{}, rules.TCP, rules.DstPort{Port: 1, Not: true}), rule("a", rules.Return{}, rules.TCP, rules.DstPort{Port: 2, Not: true})}, `
			tcp dport != 1 return comment "a"
			tcp dport != 2 return comment "a"`},
		"not two lists": {[]rules.Rule{rule("a", rules.Return{}, to("10.0.0.0/8"), rules.TCP, at(1)), rule("a", rules.Return{}, to("12.0.0.0/8"), rules.TCP, at(2))}, `
			ip daddr 10.0.0.0/8 tcp dport 1 return comment "a"
			ip daddr 12.0.0.0/8 tcp dport 2 return comment "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rs := rules.Ruleset{
				Chains: []rules.Chain{own, {Table: rules.Nat, Name: "ENDS"}, {Table: rules.Nat, Name: "PASSES"}},
				Rules: append(slices.Clone(c.rules),
					rules.Rule{Chain: rules.Chain{Table: rules.Nat, Name: "ENDS"}, Matches: []rules.Match{rules.TCP}, Target: rules.Redirect(1)},
					rules.Rule{Chain: rules.Chain{Table: rules.Nat, Name: "PASSES"}, Target: rules.SetMark(1)}),
			}
			before := fmt.Sprint(rs)
			got := strings.Join(Compile(rs, rules.Families).listing()[0].lines, "\n")
			if want := strings.ReplaceAll(strings.TrimSpace(c.want), "\t", ""); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if after := fmt.Sprint(rs); after != before {
				t.Errorf("Compile changes its ruleset from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// However many are excluded or included, the number of rules is the same.
func TestThereAreNoMoreRulesForMoreEntries(t *testing.T) {
	t.Parallel()
	count := func(n int) (all int) {
		var ports []redirect.Port
		for number := range n {
			ports = append(ports, redirect.Port{Number: uint16(100 + 2*number), Origin: "the test"})
		}
		rs := redirect.Istio{
			Proxy:    redirect.Proxy{UID: 1337, GID: 1337, Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
			Inbound:  redirect.IstioInbound{All: true, ExcludePorts: ports},
			Outbound: redirect.IstioOutbound{IncludeRanges: manyRanges(n), ExcludeRanges: manyRanges(n), ExcludePorts: ports},
		}.Ruleset()
		table := Compile(rs, rules.Families)
		for _, c := range table.chains {
			all += len(c.rules)
		}
		return all
	}
	if few, many := count(2), count(1000); few != many {
		t.Errorf("%d rules for 2 entries of each list, %d for 1000", few, many)
	}
}
