package trace

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// tracking is what connection tracking knows of a packet.
type tracking uint8

const (
	untracked tracking = iota // it comes later, or can't assign the packet: the state is INVALID
	template                  // it comes later, but a rule has set the zone: the state is NEW
	tracked
)

// state is a packet between two rules.
type state struct {
	protocol rules.Protocol
	src, dst netip.AddrPort
	in, out  string // the interfaces, empty in a hook that has none
	socket   bool
	uid, gid uint32
	mark     uint32
	connMark uint32
	ct       tracking
	ctState  rules.State
	gateOpen bool
}

// matches reports whether the packet meets one condition of a rule.
func (s *state) matches(m rules.Match) (bool, error) {
	switch m := m.(type) {
	case rules.Source:
		return within(s.src, m.Prefixes), nil
	case rules.Destination:
		return within(s.dst, m.Prefixes) != m.Not, nil
	case rules.InInterface:
		return s.in == string(m), nil
	case rules.OutInterface:
		return s.out == string(m), nil
	case rules.Protocol:
		return s.protocol == m, nil
	case rules.SrcPort:
		return s.src.Port() == uint16(m), nil
	case rules.DstPort:
		return (s.dst.Port() == m.Port) != m.Not, nil
	case rules.DstPorts:
		return slices.Contains(m.Ports, s.dst.Port()) != m.Not, nil
	case rules.OwnerUID:
		return (s.socket && s.uid == m.ID) != m.Not, nil // a packet without a socket has no user
	case rules.OwnerGID:
		return (s.socket && s.gid == m.ID) != m.Not, nil
	case rules.Mark:
		return (s.mark == m.Value) != m.Not, nil
	case rules.ConnMark:
		return s.ct != untracked && s.connMark == uint32(m), nil
	case rules.CTState:
		return slices.Contains(m, s.seenState()), nil
	case rules.GateOpen:
		return s.gateOpen, nil
	}
	return false, fmt.Errorf("match %T is not known", m)
}

func (s *state) seenState() rules.State {
	switch s.ct {
	case untracked:
		return rules.Invalid
	case template:
		return New
	case tracked:
	}
	return s.ctState
}

func within(a netip.AddrPort, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
}
