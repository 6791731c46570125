// Package iptext is the language of iptables: it prints a Ruleset as iptables-restore takes it, parses what iptables-save
// lists, and compares the two. It is pure: text in, text out.
package iptext

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Print prints a rule as iptables-save does: "-A CHAIN MATCHES -j TARGET". The rule must come from For or ParseRule.
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

// prefix leaves out a range of all addresses, which is no condition.
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

// allBits is the mask with which a mark is set, saved or restored whole.
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
