package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// MaxMultiport is how many ports one multiport match of iptables holds (XT_MULTI_PORTS); a range of ports counts as two.
const MaxMultiport = 15

// For returns the ruleset as iptables takes it for one family: one range a match, no more ports a match than it holds, and
// no rule of the other family.
func (rs Ruleset) For(f Family) Ruleset {
	out := Ruleset{Chains: rs.Chains, Setup: rs.Setup}
	for _, r := range rs.asWritten() {
		out.Rules = append(out.Rules, r.expand(f)...)
	}
	return out
}

// maxAsWritten is how many rules, or ranges of one rule, iptables is given as the mesh's own commands would give it them.
// It takes seconds for tens of thousands, and each connection is compared with all of them. So of more, neighbours
// become one: ports and ranges that adjoin.
const maxAsWritten = 500

func (rs Ruleset) asWritten() []Rule {
	if len(rs.Rules) <= maxAsWritten {
		return rs.Rules
	}
	folded := rs.Folded()
	var out []Rule
	for _, r := range rs.Rules { // the first of each chain stands for the chain
		out = append(out, folded[r.Chain]...)
		delete(folded, r.Chain)
	}
	return out
}

// expand returns the rule for each combination of its matches' variants.
func (r Rule) expand(f Family) []Rule {
	target, ok := targetFor(r.Target, f)
	if !ok {
		return nil
	}
	r.Target = target
	out := []Rule{r}
	for i, m := range r.Matches {
		all, whole := variants(m, f)
		if whole {
			continue
		}
		var next []Rule
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

// variants are the matches of iptables that stand for m in one family; whole says that m itself does.
func variants(m Match, f Family) (all []Match, whole bool) {
	switch m := m.(type) {
	case Source:
		for _, p := range merged(OfFamily(m.Prefixes, f)) {
			all = append(all, Source{[]netip.Prefix{p}})
		}
	case Destination:
		for _, p := range merged(OfFamily(m.Prefixes, f)) {
			all = append(all, Destination{[]netip.Prefix{p}, m.Not})
		}
	case DstPorts:
		for _, ports := range multiports(m.Ports) {
			all = append(all, DstPorts{ports, m.Not})
		}
	default:
		return nil, true
	}
	return all, false
}

// merged returns a long list of ranges as the fewest that hold the same addresses, in order.
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

// OfFamily returns those of the ranges that are of the family.
func OfFamily(prefixes []netip.Prefix, f Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return Of(p.Addr()) != f })
}

// targetFor returns the target in one family; not ok means that the rule is the other family's.
func targetFor(t Target, f Family) (Target, bool) {
	switch t := t.(type) {
	case DNAT:
		return t, Of(t.Addr) == f
	case TProxy:
		t.On = netip.IPv4Unspecified()
		if f == IPv6 {
			t.On = netip.IPv6Unspecified()
		}
		return t, true
	}
	return t, true
}

// String prints the rule as iptables-save does: "-A CHAIN MATCHES -j TARGET". The rule must be of the kind that For
// makes; no match or target is unknown to it.
func (r Rule) String() string {
	p := printer{words: []string{"-A", r.Chain.Name}}
	for _, m := range r.Matches {
		p.match(m)
	}
	return strings.Join(append(p.words, r.Target.words()...), " ")
}

type printer struct {
	words    []string
	protocol Protocol
}

func (p *printer) match(m Match) {
	switch m := m.(type) {
	case Source:
		p.prefix("-s", m.Prefixes[0], false)
	case Destination:
		p.prefix("-d", m.Prefixes[0], m.Not)
	case InInterface:
		p.add(false, "-i", string(m))
	case OutInterface:
		p.add(false, "-o", string(m))
	case Protocol:
		p.protocol = m
		p.add(false, "-p", string(m))
	case SrcPort:
		p.module(string(p.protocol), false, "--sport", fmt.Sprint(uint16(m)))
	case DstPort:
		p.module(string(p.protocol), m.Not, "--dport", fmt.Sprint(m.Port))
	case DstPorts:
		p.module("multiport", m.Not, "--dports", join(PortRanges(m.Ports)))
	case OwnerUID:
		p.module("owner", m.Not, "--uid-owner", fmt.Sprint(m.ID))
	case OwnerGID:
		p.module("owner", m.Not, "--gid-owner", fmt.Sprint(m.ID))
	case Mark:
		p.module("mark", m.Not, "--mark", hex(m.Value))
	case ConnMark:
		p.module("connmark", false, "--mark", hex(uint32(m)))
	case CTState:
		p.module("conntrack", false, "--ctstate", join(m))
	case Armed:
		p.module("armed", false)
	default:
		panic(fmt.Sprintf("rules: match %T is not printed", m))
	}
}

// prefix leaves out a range that holds every address: it is no condition.
func (p *printer) prefix(option string, prefix netip.Prefix, not bool) {
	if prefix.Bits() > 0 {
		p.add(not, option, prefix.String())
	}
}

func (p *printer) module(name string, not bool, words ...string) {
	p.words = append(p.words, "-m", name)
	p.add(not, words...)
}

func (p *printer) add(not bool, words ...string) {
	if not {
		p.words = append(p.words, "!")
	}
	p.words = append(p.words, words...)
}

func (Return) words() []string { return []string{"-j", "RETURN"} }
func (Accept) words() []string { return []string{"-j", "ACCEPT"} }
func (Drop) words() []string   { return []string{"-j", "DROP"} }
func (t Jump) words() []string { return []string{"-j", string(t)} }
func (t Redirect) words() []string {
	return []string{"-j", "REDIRECT", "--to-ports", fmt.Sprint(uint16(t))}
}
func (t DNAT) words() []string {
	to := t.Addr.String()
	if t.Port != 0 {
		to = netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return []string{"-j", "DNAT", "--to-destination", to}
}
func (t TProxy) words() []string {
	return []string{"-j", "TPROXY", "--on-port", fmt.Sprint(t.Port), "--on-ip", t.On.String(), "--tproxy-mark", hex(t.Mark) + "/0xffffffff"}
}
func (t SetMark) words() []string {
	return []string{"-j", "MARK", "--set-xmark", hex(uint32(t)) + "/0xffffffff"}
}
func (SaveMark) words() []string {
	return []string{"-j", "CONNMARK", "--save-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"}
}
func (RestoreMark) words() []string {
	return []string{"-j", "CONNMARK", "--restore-mark", "--nfmask", "0xffffffff", "--ctmask", "0xffffffff"}
}
func (t Zone) words() []string { return []string{"-j", "CT", "--zone", fmt.Sprint(uint16(t))} }

func (Arm) words() []string { return []string{"-j", "ARM"} }

func hex(v uint32) string { return fmt.Sprintf("%#x", v) }

// join prints a list as iptables does.
func join[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ",")
}
