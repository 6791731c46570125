// Package iptext is the language of iptables: it prints a Ruleset as iptables-restore takes it, parses what iptables-save
// lists, and compares the two. It is pure: text in, text out.
package iptext

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// For returns the ruleset as iptables takes it for one family: one range a match, no more ports a match than it holds, and
// no rule of the other family.
func For(rs rules.Ruleset, f rules.Family) rules.Ruleset {
	out := rules.Ruleset{Chains: rs.Chains, Setup: rs.Setup}
	for _, r := range asWritten(rs) {
		out.Rules = append(out.Rules, expand(r, f)...)
	}
	return out
}

// maxAsWritten is how many rules, or ranges of one rule, iptables is given as the mesh's own commands would give it them.
// It takes seconds for tens of thousands, and each connection is compared with all of them. So of more, neighbours
// become one: ports and ranges that adjoin.
const maxAsWritten = 500

func asWritten(rs rules.Ruleset) []rules.Rule {
	if len(rs.Rules) <= maxAsWritten {
		return rs.Rules
	}
	folded := rs.Folded()
	var out []rules.Rule
	for _, r := range rs.Rules { // the first of each chain stands for the chain
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

// variants are the matches of iptables that stand for m in one family; whole says that m itself does.
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

// targetFor returns the target in one family; not ok means that the rule is the other family's.
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

// Print prints a rule as iptables-save does: "-A CHAIN MATCHES -j TARGET". The rule must be one that For returned.
func Print(r rules.Rule) string {
	p := printer{words: []string{"-A", r.Chain.Name}}
	for _, m := range r.Matches {
		p.match(m)
	}
	return strings.Join(append(p.words, target(r.Target)...), " ")
}

type printer struct {
	words    []string
	protocol rules.Protocol
}

func (p *printer) match(m rules.Match) {
	switch m := m.(type) {
	case rules.Source:
		p.prefix("-s", m.Prefixes[0], false)
	case rules.Destination:
		p.prefix("-d", m.Prefixes[0], m.Not)
	case rules.InInterface:
		p.add(false, "-i", string(m))
	case rules.OutInterface:
		p.add(false, "-o", string(m))
	case rules.Protocol:
		p.protocol = m
		p.add(false, "-p", string(m))
	case rules.SrcPort:
		p.module(string(p.protocol), false, "--sport", fmt.Sprint(uint16(m)))
	case rules.DstPort:
		p.module(string(p.protocol), m.Not, "--dport", fmt.Sprint(m.Port))
	case rules.DstPorts:
		p.module("multiport", m.Not, "--dports", join(rules.PortRanges(m.Ports)))
	case rules.OwnerUID:
		p.module("owner", m.Not, "--uid-owner", fmt.Sprint(m.ID))
	case rules.OwnerGID:
		p.module("owner", m.Not, "--gid-owner", fmt.Sprint(m.ID))
	case rules.Mark:
		p.module("mark", m.Not, "--mark", hex(m.Value))
	case rules.ConnMark:
		p.module("connmark", false, "--mark", hex(uint32(m)))
	case rules.CTState:
		p.module("conntrack", false, "--ctstate", join(m))
	case rules.GateOpen:
		p.module("gate-open", false)
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

// allBits is the mask of a mark that is set, saved or restored whole.
const allBits = "0xffffffff"

func target(t rules.Target) []string {
	switch t := t.(type) {
	case rules.Return:
		return []string{"-j", "RETURN"}
	case rules.Accept:
		return []string{"-j", "ACCEPT"}
	case rules.Drop:
		return []string{"-j", "DROP"}
	case rules.Jump:
		return []string{"-j", string(t)}
	case rules.Redirect:
		return []string{"-j", "REDIRECT", "--to-ports", fmt.Sprint(uint16(t))}
	case rules.DNAT:
		return []string{"-j", "DNAT", "--to-destination", destination(t)}
	case rules.TProxy:
		return []string{"-j", "TPROXY", "--on-port", fmt.Sprint(t.Port), "--on-ip", t.On.String(), "--tproxy-mark", hex(t.Mark) + "/" + allBits}
	case rules.SetMark:
		return []string{"-j", "MARK", "--set-xmark", hex(uint32(t)) + "/" + allBits}
	case rules.SaveMark:
		return []string{"-j", "CONNMARK", "--save-mark", "--nfmask", allBits, "--ctmask", allBits}
	case rules.RestoreMark:
		return []string{"-j", "CONNMARK", "--restore-mark", "--nfmask", allBits, "--ctmask", allBits}
	case rules.Zone:
		return []string{"-j", "CT", "--zone", fmt.Sprint(uint16(t))}
	case rules.OpenGate:
		return []string{"-j", "OPEN-GATE"}
	}
	return nil
}

func destination(t rules.DNAT) string {
	if t.Port == 0 {
		return t.Addr.String()
	}
	return netip.AddrPortFrom(t.Addr, t.Port).String()
}

func hex(v uint32) string { return fmt.Sprintf("%#x", v) }

// join prints a list as iptables does.
func join[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ",")
}
