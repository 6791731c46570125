// Package rules defines Ruleset, a pod's rules as types: what everything else prints, programs, walks or compares.
package rules

import (
	"net/netip"
	"slices"
)

// Table is a netfilter table by iptables' name.
type Table string

// The tables, in the order in which a packet meets them in a hook.
const (
	Raw    Table = "raw"    // ahead of connection tracking
	Mangle Table = "mangle" // every packet
	Nat    Table = "nat"    // the first packet of each connection
)

// Tables are all tables, in the order in which a packet meets them in a hook.
var Tables = []Table{Raw, Mangle, Nat}

// The base chains that redirection hooks into; every table has both.
const (
	Prerouting = "PREROUTING"
	Output     = "OUTPUT"
)

// Ruleset is a pod's whole redirection. It covers both families: a rule with addresses belongs to the families of its
// addresses, every other rule to both.
type Ruleset struct {
	// Chains are the ruleset's own chains: they are created, filled and removed with it.
	Chains []Chain
	// Rules are in the order of evaluation within each chain.
	Rules []Rule
	// Setup is what the rules need beside netfilter.
	Setup Setup
}

// Chain names a chain of the ruleset.
type Chain struct {
	Table Table
	Name  string
}

// Base reports whether the chain is a base chain, which detour shares with others.
func (c Chain) Base() bool { return c.Name == Prerouting || c.Name == Output }

// Rule is one rule: if every match holds, the target happens.
type Rule struct {
	Chain   Chain
	Matches []Match
	Target  Target
	// Why says in a few words what the rule is for.
	Why string
}

// Concerns reports whether the rule belongs to the family: a rule with addresses belongs to their families only, and one
// with an empty list to none.
func (r Rule) Concerns(f Family) bool {
	has := func(prefixes []netip.Prefix) bool {
		return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return Of(p.Addr()) == f })
	}
	for _, m := range r.Matches {
		switch m := m.(type) {
		case Source:
			if !has(m.Prefixes) {
				return false
			}
		case Destination:
			if !has(m.Prefixes) {
				return false
			}
		case DstPorts:
			if len(m.Ports) == 0 {
				return false
			}
		default:
		}
	}
	switch t := r.Target.(type) {
	case DNAT:
		return Of(t.Addr) == f
	case TProxy:
		return !t.On.IsValid() || Of(t.On) == f
	default:
		return true
	}
}

// Match is one condition of a rule, one of the types below. A rule has them in the order in which iptables-save prints them:
// source, destination, interfaces, protocol, then the rest as the mesh has it.
//
//sumtype:decl
type Match interface{ match() }

type (
	// Source matches packets from one of the ranges, which may be of both families.
	Source struct{ Prefixes []netip.Prefix }
	// Destination matches packets to one of the ranges, which may be of both families; with Not, packets to none, and
	// then there is at most one range of a family.
	Destination struct {
		Prefixes []netip.Prefix
		Not      bool
	}
	// InInterface matches packets that come in on an interface.
	InInterface string
	// OutInterface matches packets that go out on an interface.
	OutInterface string
	// Protocol matches packets of a transport protocol. A match on a port needs one ahead of it.
	Protocol string
	// SrcPort matches the source port.
	SrcPort uint16
	// DstPort matches the destination port.
	DstPort struct {
		Port uint16
		Not  bool
	}
	// DstPorts matches any of the destination ports; with Not, any other port, and then there are at most MaxMultiport.
	DstPorts struct {
		Ports []uint16
		Not   bool
	}
	// OwnerUID matches locally sent packets by the user that created the socket. A packet without a socket, such as the
	// kernel's own reset, matches only with Not.
	OwnerUID struct {
		ID  uint32
		Not bool
	}
	// OwnerGID matches locally sent packets by the group that created the socket; without a socket as OwnerUID.
	OwnerGID struct {
		ID  uint32
		Not bool
	}
	// Mark matches the packet's mark.
	Mark struct {
		Value uint32
		Not   bool
	}
	// ConnMark matches the connection's mark.
	ConnMark uint32
	// CTState matches packets whose connection tracking state is one of the list.
	CTState []State
	// GateOpen matches every packet after a packet of the pod has met OpenGate. iptables has no such match.
	GateOpen struct{}
)

// The protocols that sidecars intercept.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// State is a connection tracking state by iptables' name.
type State string

// The states that rules ask for.
const (
	Invalid     State = "INVALID"
	Related     State = "RELATED"
	Established State = "ESTABLISHED"
)

func (Source) match()       {}
func (Destination) match()  {}
func (InInterface) match()  {}
func (OutInterface) match() {}
func (Protocol) match()     {}
func (SrcPort) match()      {}
func (DstPort) match()      {}
func (DstPorts) match()     {}
func (OwnerUID) match()     {}
func (OwnerGID) match()     {}
func (Mark) match()         {}
func (ConnMark) match()     {}
func (CTState) match()      {}
func (GateOpen) match()     {}

// Target is what a rule does, one of the types below.
//
//sumtype:decl
type Target interface{ target() }

type (
	// Return goes back to the calling chain; in a base chain it ends the evaluation of the table.
	Return struct{}
	// Accept ends the evaluation of the table.
	Accept struct{}
	// Drop ends the packet.
	Drop struct{}
	// Jump continues in another chain of the same table.
	Jump string
	// Redirect sends the connection to a local port (REDIRECT).
	Redirect uint16
	// DNAT sends the connection to an address, and to a port unless that is 0.
	DNAT struct {
		Addr netip.Addr
		Port uint16
	}
	// TProxy hands the packet to a transparent local listener and marks it (TPROXY). On is the family's unspecified address,
	// which stands for the interface's own; iptext.For fills it in.
	TProxy struct {
		Port uint16
		On   netip.Addr
		Mark uint32
	}
	// SetMark sets the packet's mark (MARK) and goes on.
	SetMark uint32
	// SaveMark copies the packet's mark to its connection (CONNMARK) and goes on.
	SaveMark struct{}
	// RestoreMark copies the connection's mark to the packet (CONNMARK) and goes on.
	RestoreMark struct{}
	// Zone has the packet's connection tracked in a zone of its own (CT) and goes on.
	Zone uint16
	// OpenGate makes GateOpen match from now on, in later rules for this packet as well, and goes on. iptables has no such
	// target.
	OpenGate struct{}
)

func (Return) target()      {}
func (Accept) target()      {}
func (Drop) target()        {}
func (Jump) target()        {}
func (Redirect) target()    {}
func (DNAT) target()        {}
func (TProxy) target()      {}
func (SetMark) target()     {}
func (SaveMark) target()    {}
func (RestoreMark) target() {}
func (Zone) target()        {}
func (OpenGate) target()    {}

// Gated reports whether the ruleset has a gate: rules that apply only after a packet has met another rule. Only nftables can
// do that.
func (rs Ruleset) Gated() bool {
	return slices.ContainsFunc(rs.Rules, func(r Rule) bool { return r.Target == OpenGate{} || slices.Contains(r.Matches, Match(GateOpen{})) })
}
