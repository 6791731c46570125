package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// builder collects rules in the order of the mesh's own iptables commands: append is iptables -A, insert is iptables -I.
type builder struct{ rs rules.Ruleset }

func (b *builder) chains(t rules.Table, names ...string) {
	for _, name := range names {
		if c := (rules.Chain{Table: t, Name: name}); !slices.Contains(b.rs.Chains, c) {
			b.rs.Chains = append(b.rs.Chains, c)
		}
	}
}

func (b *builder) append(t rules.Table, chain, why string, target rules.Target, m ...rules.Match) {
	b.rs.Rules = append(b.rs.Rules, rules.Rule{Chain: rules.Chain{Table: t, Name: chain}, Matches: m, Target: target, Why: why})
}

// insert puts the rule at a position in its chain, counted from 1.
func (b *builder) insert(t rules.Table, chain string, position int, why string, target rules.Target, m ...rules.Match) {
	rule := rules.Rule{Chain: rules.Chain{Table: t, Name: chain}, Matches: m, Target: target, Why: why}
	for i, r := range b.rs.Rules {
		if r.Chain != rule.Chain {
			continue
		}
		if position--; position == 0 {
			b.rs.Rules = slices.Insert(b.rs.Rules, i, rule)
			return
		}
	}
	b.rs.Rules = append(b.rs.Rules, rule)
}

// gate makes outbound redirection start with the first packet that the proxy sends out of the pod, if wanted, and returns
// the condition for the rules to wait. That packet opens the gate for itself as well: mangle comes ahead of nat. Packets
// within the pod don't count: istio-validation sends some before the proxy starts, as the proxy's user.
func (b *builder) gate(wanted bool, proxy Proxy) []rules.Match {
	if !wanted {
		return nil
	}
	for _, owner := range proxy.owners() {
		b.append(rules.Mangle, rules.Output, "the proxy's first packet starts the redirection of what goes out", rules.OpenGate{}, leavesPod, owner)
	}
	return []rules.Match{rules.GateOpen{}}
}

// leavesPod matches all destinations but 127.0.0.0/8, ::1 and ::6.
var leavesPod = rules.Destination{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::/125")}, Not: true}

func numbers(ports []Port) []uint16 {
	out := make([]uint16, len(ports))
	for i, p := range ports {
		out[i] = p.Number
	}
	return out
}

// origins lists the ports by origin: "A (80, 81), B (90)".
func origins(ports []Port) string {
	var order []string
	numbers := map[string][]string{}
	for _, p := range ports {
		if numbers[p.Origin] == nil {
			order = append(order, p.Origin)
		}
		numbers[p.Origin] = append(numbers[p.Origin], fmt.Sprint(p.Number))
	}
	for i, o := range order {
		order[i] = fmt.Sprintf("%s (%s)", o, strings.Join(numbers[o], ", "))
	}
	return strings.Join(order, ", ")
}

type rangeGroup struct {
	origin   string
	prefixes []netip.Prefix
}

// byOrigin groups neighbouring ranges of one origin, so that a backend with sets needs few rules.
func byOrigin(ranges []Range) []rangeGroup {
	var groups []rangeGroup
	for _, r := range ranges {
		if n := len(groups); n == 0 || groups[n-1].origin != r.Origin {
			groups = append(groups, rangeGroup{origin: r.Origin})
		}
		g := &groups[len(groups)-1]
		g.prefixes = append(g.prefixes, r.Prefix)
	}
	return groups
}
