// Package rules holds the one typed Ruleset that everything else prints, programs, walks or compares.
package rules

import (
	"fmt"
	"net/netip"
)

// Family is an IP address family.
type Family uint8

// The families, by their version numbers.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// Families are both, in the order in which they are programmed.
var Families = []Family{IPv4, IPv6}

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

// Table is a netfilter table by iptables' name.
type Table string

// Nat is the table whose chains see the first packet of each connection.
const Nat Table = "nat"

// The base chains of the nat table that redirection hooks into.
const (
	Prerouting = "PREROUTING"
	Output     = "OUTPUT"
)

// Ruleset is a pod's whole redirection. It covers both families: a rule with addresses belongs to the families of its
// addresses, every other rule to both.
type Ruleset struct {
	// Chains are the chains that belong to the ruleset: made, filled and removed with it.
	Chains []Chain
	// Rules are in the order of evaluation within each chain. A rule of a base chain jumps into a chain of the set.
	Rules []Rule
}

// Chain names a chain of the ruleset.
type Chain struct {
	Table Table
	Name  string
}

// Rule is one rule: if every match holds, the target happens.
type Rule struct {
	Chain   Chain
	Matches []Match
	Target  Target
	// Why says in a few words why the rule is there.
	Why string
}

// Match is one condition of a rule: OutInterface, Destination, Protocol, DstPort, DstPorts or OwnerUID. Within a rule
// they stand in the order in which iptables-save prints them: addresses, interfaces, protocol, then the rest.
type Match interface{ match() }

// Target is what a rule does: Return, Accept, Jump or Redirect.
type Target interface {
	// words are the target as iptables-save prints it.
	words() []string
}

type (
	// Destination matches packets to one of the ranges, which may be of both families.
	Destination []netip.Prefix
	// Protocol matches packets of a transport protocol.
	Protocol string
	// DstPort matches a TCP packet's destination port.
	DstPort uint16
	// DstPorts matches TCP packets to one of the ports, of which there may be any number.
	DstPorts []uint16
	// OwnerUID matches locally made packets by the user that created the socket.
	OwnerUID uint32
)

// TCP is the one protocol that sidecars intercept.
const TCP Protocol = "tcp"

func (Destination) match() {}
func (Protocol) match()    {}
func (DstPort) match()     {}
func (DstPorts) match()    {}
func (OwnerUID) match()    {}

type (
	// Return goes back to the calling chain; from a chain that a base chain called, the packet goes its own way.
	Return struct{}
	// Accept ends the evaluation of the table.
	Accept struct{}
	// Jump continues in another chain of the same table.
	Jump string
	// Redirect sends the connection to a local port (REDIRECT).
	Redirect uint16
)
