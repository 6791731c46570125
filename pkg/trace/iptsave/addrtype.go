package iptsave

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

var addrTypes = map[string]uint8{
	"UNSPEC": unix.RTN_UNSPEC, "UNICAST": unix.RTN_UNICAST, "LOCAL": unix.RTN_LOCAL, "BROADCAST": unix.RTN_BROADCAST, "ANYCAST": unix.RTN_ANYCAST,
	"MULTICAST": unix.RTN_MULTICAST, "BLACKHOLE": unix.RTN_BLACKHOLE, "UNREACHABLE": unix.RTN_UNREACHABLE, "PROHIBIT": unix.RTN_PROHIBIT,
}

func addrType(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		var types []trace.Range
		var all []trace.Match // beside the types
		for name := range strings.SplitSeq(args[0], ",") {
			number, ok := addrTypes[name]
			if !ok {
				return fmt.Errorf("type of address %q is not known", name)
			}
			if m, ok := addrTypes6[name]; ok && p.file.family == trace.IP6 {
				m.Left, m.Text = addrOfType[f], text
				all = append(all, m)
				continue
			}
			types = append(types, trace.Just(trace.Number(number)))
		}
		if len(types) > 0 {
			all = append(all, trace.Match{Left: f, Right: trace.NewSet(types...), Text: text})
		}
		p.all(all, text)
		return nil
	}
}

// addrTypes6 are the types that IPv6 tells by the address alone. All that a match names have to hold, while one of IPv4's has to.
var addrTypes6 = map[string]trace.Match{
	"UNSPEC":    {Right: trace.NewSet(trace.Just(trace.Addr(netip.IPv6Unspecified())))},
	"MULTICAST": {Right: trace.NewSet(trace.Prefix(multicast6))},
	"UNICAST":   {Right: trace.NewSet(trace.Prefix(multicast6), trace.Just(trace.Addr(netip.IPv6Unspecified()))), Not: true},
}

var multicast6 = netip.MustParsePrefix("ff00::/8")

var addrOfType = map[trace.Field]trace.Field{trace.SaddrType: trace.Saddr, trace.DaddrType: trace.Daddr}

// all requires that all of the matches hold or, behind "!", that one doesn't.
func (p *parser) all(matches []trace.Match, text string) {
	if !p.not {
		for _, m := range matches {
			p.add(m)
		}
		return
	}
	for i := range matches {
		matches[i].Not = !matches[i].Not
	}
	if len(matches) == 1 {
		p.add(matches[0])
		return
	}
	p.add(trace.AnyOf{Matches: matches, Text: text})
}

// limited are the fields of a match addrtype that looks at one interface.
var limited = map[bool]map[trace.Field]trace.Field{
	true:  {trace.SaddrType: trace.SaddrTypeIIF, trace.DaddrType: trace.DaddrTypeIIF},
	false: {trace.SaddrType: trace.SaddrTypeOIF, trace.DaddrType: trace.DaddrTypeOIF},
}

func limitIn(p *parser, _ []string, _ string) error  { return p.limitTo(true) }
func limitOut(p *parser, _ []string, _ string) error { return p.limitTo(false) }

// limitTo has the address types that this module matches look at one interface only.
func (p *parser) limitTo(in bool) error {
	for i, s := range p.rule.Statements[p.since:] {
		if m, ok := s.(trace.Match); ok {
			if f, ok := m.Left.(trace.Field); ok && limited[in][f] != 0 {
				m.Left = limited[in][f]
				p.rule.Statements[p.since+i] = m
			}
		}
	}
	return nil
}
