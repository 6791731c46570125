package iptext

import (
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// For returns the ruleset as iptables takes it for one family: a match holds one range and at most 15 ports, and rules of the
// other family are left out.
func For(rs rules.Ruleset, f rules.Family) rules.Ruleset {
	out := rules.Ruleset{Chains: rs.Chains, Setup: rs.Setup}
	for _, r := range asWritten(rs) {
		out.Rules = append(out.Rules, expand(r, f)...)
	}
	return out
}

// maxAsWritten is how many rules, or ranges of one rule, are left as the mesh's own commands would write them. iptables takes
// seconds for tens of thousands, and the kernel compares each connection with all of them. So a longer list is merged:
// adjoining ports and ranges become one.
const maxAsWritten = 500

func asWritten(rs rules.Ruleset) []rules.Rule {
	if len(rs.Rules) <= maxAsWritten {
		return rs.Rules
	}
	folded := rs.Folded()
	var out []rules.Rule
	for _, r := range rs.Rules { // a chain's first rule brings all of its folded rules
		out = append(out, folded[r.Chain]...)
		delete(folded, r.Chain)
	}
	return out
}

// expand returns the rule for each combination of its matches' variants.
func expand(r rules.Rule, f rules.Family) []rules.Rule {
	target, ok := targetFor(r.Target, f)
	if !ok {
		return nil
	}
	r.Target = target
	out := []rules.Rule{r}
	for i, m := range r.Matches {
		all, whole := variants(m, f)
		if whole {
			continue
		}
		var next []rules.Rule
		for _, r := range out {
			for _, v := range all {
				c := r
				c.Matches = slices.Clone(r.Matches)
				c.Matches[i] = v
				next = append(next, c)
			}
		}
		out = next
	}
	return out
}

// variants are the matches of iptables that replace m in one family; whole means that m stays as it is.
func variants(m rules.Match, f rules.Family) (all []rules.Match, whole bool) {
	switch m := m.(type) {
	case rules.Source:
		for _, p := range merged(rules.OfFamily(m.Prefixes, f)) {
			all = append(all, rules.Source{Prefixes: []netip.Prefix{p}})
		}
	case rules.Destination:
		for _, p := range merged(rules.OfFamily(m.Prefixes, f)) {
			all = append(all, rules.Destination{Prefixes: []netip.Prefix{p}, Not: m.Not})
		}
	case rules.DstPorts:
		for _, ports := range multiports(m.Ports) {
			all = append(all, rules.DstPorts{Ports: ports, Not: m.Not})
		}
	default:
		return nil, true
	}
	return all, false
}

// merged returns a long list of ranges as the fewest ranges with the same addresses, in order.
func merged(prefixes []netip.Prefix) []netip.Prefix {
	if len(prefixes) <= maxAsWritten {
		return prefixes
	}
	var out []netip.Prefix
	for _, p := range slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare) {
		if n := len(out); n > 0 && out[n-1].Overlaps(p) {
			continue
		}
		for n := len(out); n > 0; n = len(out) { // two halves are one whole
			whole := netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			if p.Bits() == 0 || out[n-1].Bits() != p.Bits() || !whole.Contains(out[n-1].Addr()) {
				break
			}
			p, out = whole, out[:n-1]
		}
		out = append(out, p)
	}
	return out
}

// targetFor returns the target in one family; it is not ok if the rule belongs to the other family.
func targetFor(t rules.Target, f rules.Family) (rules.Target, bool) {
	switch t := t.(type) {
	case rules.DNAT:
		return t, rules.Of(t.Addr) == f
	case rules.TProxy:
		t.On = netip.IPv4Unspecified()
		if f == rules.IPv6 {
			t.On = netip.IPv6Unspecified()
		}
		return t, true
	default:
		return t, true
	}
}

// multiports divides a list of ports so that each part fits into one multiport match.
func multiports(ports []uint16) [][]uint16 {
	var out [][]uint16
	free := 0 // slots of the last
	for _, r := range rules.PortRanges(ports) {
		if free < slots(r) {
			out = append(out, nil)
			free = rules.MaxMultiport
		}
		free -= slots(r)
		last := &out[len(out)-1]
		for p := int(r.From); p <= int(r.To); p++ {
			*last = append(*last, uint16(p))
		}
	}
	return out
}

// slots is how many of a multiport match's ports the range counts for.
func slots(r rules.PortRange) int {
	if r.From == r.To {
		return 1
	}
	return 2
}
