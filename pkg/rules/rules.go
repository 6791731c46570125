// Package rules holds the one typed Ruleset that everything else prints, programs, walks or compares.
package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// Family is an IP address family.
type Family uint8

// The families, by their version numbers.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both, in the order in which they are programmed.
var Families = []Family{IPv4, IPv6}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// MarshalText makes a Family readable in JSON.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Family) UnmarshalText(text []byte) error {
	for _, known := range Families {
		if string(text) == known.String() {
			*f = known
			return nil
		}
	}
	return fmt.Errorf("%q is neither IPv4 nor IPv6", text)
}

// Of returns the family of an address; an IPv4-mapped IPv6 address counts as IPv4.
func Of(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// OfFamily returns those of the ranges that are of the family.
func OfFamily(prefixes []netip.Prefix, f Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return Of(p.Addr()) != f })
}

// FamiliesOf returns the families of the addresses.
func FamiliesOf(addresses []netip.Addr) []Family {
	var out []Family
	for _, f := range Families {
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return Of(a) == f }) {
			out = append(out, f)
		}
	}
	return out
}

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
	// Chains are the chains that belong to the ruleset: made, filled and removed with it.
	Chains []Chain
	// Rules are in the order of evaluation within each chain.
	Rules []Rule
	// Setup is what the rules need of the namespace beside netfilter.
	Setup Setup
}

// Setup is routing that a ruleset relies on.
type Setup struct {
	// Loopback are addresses that lo must have.
	Loopback []netip.Prefix `json:"loopback,omitempty"`
	// Routes deliver marked packets locally, whatever their address.
	Routes []LocalRoute `json:"routes,omitempty"`
}

// LocalRoute is an ip rule that looks packets with Mark up in Table, and Table's one route, which makes every address
// local, on lo.
type LocalRoute struct {
	Mark  uint32 `json:"mark"`
	Table int    `json:"table"`
}

// Join returns what s or other needs, each thing once.
func (s Setup) Join(other Setup) Setup {
	return Setup{once(s.Loopback, other.Loopback), once(s.Routes, other.Routes)}
}

// Without returns what s needs and other does not.
func (s Setup) Without(other Setup) Setup {
	return Setup{
		slices.DeleteFunc(slices.Clone(s.Loopback), func(p netip.Prefix) bool { return slices.Contains(other.Loopback, p) }),
		slices.DeleteFunc(slices.Clone(s.Routes), func(r LocalRoute) bool { return slices.Contains(other.Routes, r) }),
	}
}

func once[T comparable](lists ...[]T) []T {
	var out []T
	for _, v := range slices.Concat(lists...) {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// Chain names a chain of the ruleset.
type Chain struct {
	Table Table
	Name  string
}

// Base reports whether the chain is one of netfilter's own, which detour shares with others.
func (c Chain) Base() bool { return c.Name == Prerouting || c.Name == Output }

// Rule is one rule: if every match holds, the target happens.
type Rule struct {
	Chain   Chain
	Matches []Match
	Target  Target
	// Why says in a few words why the rule is there.
	Why string
}

// Concerns reports whether the family has the rule: a rule with addresses is only of their families, and one whose list is
// empty is of none.
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

// Match is one condition of a rule, one of the types below. Within a rule they stand in the order in which iptables-save
// prints them: source, destination, interfaces, protocol, then the rest as the mesh has it.
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
	// InInterface matches packets that came in on an interface.
	InInterface string
	// OutInterface matches packets that go out on an interface.
	OutInterface string
	// Protocol matches packets of a transport protocol. Matches on ports need one ahead of them.
	Protocol string
	// SrcPort matches the source port.
	SrcPort uint16
	// DstPort matches the destination port.
	DstPort struct {
		Port uint16
		Not  bool
	}
	// DstPorts matches a destination port among any number; with Not, one that is not among them, and then there are at
	// most 15.
	DstPorts struct {
		Ports []uint16
		Not   bool
	}
	// OwnerUID matches locally made packets by the user that created the socket; one without a socket, such as the
	// kernel's own reset, only with Not.
	OwnerUID struct {
		ID  uint32
		Not bool
	}
	// OwnerGID matches locally made packets by the group that created the socket; without a socket as OwnerUID.
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
	// GateOpen matches every packet once a packet of the pod has met OpenGate. iptables has no such match.
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
	// Return goes back to the calling chain; in a base chain, and from a chain that one called at its end, the packet
	// goes its own way.
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
	// TProxy gives the packet to a transparent local listener and marks it (TPROXY). On is the family's unspecified
	// address: the one that the packet came in on; For fills it in.
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
	// OpenGate makes GateOpen hold from now on, for this packet's later rules as well, and goes on. iptables has no such
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

// Gated reports whether the ruleset has a gate: rules that apply once another rule has been met. Only nftables can do that.
func (rs Ruleset) Gated() bool {
	return slices.ContainsFunc(rs.Rules, func(r Rule) bool { return r.Target == OpenGate{} || slices.Contains(r.Matches, Match(GateOpen{})) })
}
