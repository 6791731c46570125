package trace

import "net/netip"

// Statement is a part of a rule.
//
//sumtype:decl
type Statement interface {
	run(w *walk) control
}

type (
	// Match holds if Right has what Left reads; with Not, if it has not. If the packet doesn't have what Left reads (ports of an ICMP
	// packet, the user of a packet without a socket), it doesn't hold, unless NotOfNone.
	Match struct {
		Left  Expr
		Not   bool
		Right *Set
		// NotOfNone says that a negated match holds for a packet that doesn't have what Left reads, as iptables' matches owner,
		// mark and comment of absent things do.
		NotOfNone bool
		Text      string // as its program prints it: "--dport 7000"
	}
	// AnyOf holds if one of the matches does; with Not, if none does (iptables' --ctstate RELATED,DNAT).
	AnyOf struct {
		Matches []Match
		Not     bool
		Text    string
	}
	// Chance holds with the probability P, from 0 to 1 (statistic).
	Chance struct {
		P    float64
		Text string
	}
	// UnknownMatch may hold or not.
	UnknownMatch struct{ Text, Reason string }
	// UnknownEffect may do anything, such as end the packet.
	UnknownEffect struct{ Text, Reason string }
	// Silent does nothing that concerns the packet's way: log, counter, comment.
	Silent struct{ Text string }
	// Assign sets Mark or CTMark.
	Assign struct {
		Field Field
		Value Expr
		// IfAny says that the rule goes on if the packet doesn't have what Value reads, as iptables' targets do.
		IfAny bool
	}
	// Verdict ends the rule.
	Verdict struct {
		Kind  VerdictKind
		Chain string // of Jump and Goto
		With  string // of Reject: "icmp-port-unreachable"
	}
	// VerdictMap does what the map has for the key; nothing if it has nothing.
	VerdictMap struct {
		Key  Expr
		Map  *Set
		Text string
	}
	// NAT translates the connection and ends the chain's evaluation.
	NAT struct {
		Kind NATKind
		// Only is the family that it translates; empty for the packet's. A rule goes on with a packet of the other one.
		Only Family
		// To yields an address, a port, or both (DNAT and SNAT), or a port (Redirect). Nil for Masquerade and for Redirect to the
		// same port.
		To Expr
		// MaxPort is the last port of a range that To's port begins; 0 for none.
		MaxPort uint16
		// Net maps the packet's address into this prefix (NETMAP, "dnat prefix to").
		Net netip.Prefix
	}
	// TProxy hands the packet to the transparent listener at an address and a port; none means the packet's own. A walk assumes that
	// somebody listens. The rule goes on, as nft's does; a front-end adds what TPROXY of iptables does beside that.
	TProxy struct {
		Addr netip.Addr
		Port uint16
	}
	// NoTrack keeps connection tracking off the packet.
	NoTrack struct{}
	// SetZone has connection tracking track the packet in a zone, unless it has looked at it already.
	SetZone struct{ Zone uint16 }
	// Add adds a key to a set for the rest of the walk (nft's dynamic sets, SET --add-set).
	Add struct {
		Key Expr
		Set *Set
	}
	// Delete removes a key for the rest of the walk.
	Delete struct {
		Key Expr
		Set *Set
	}
)

// VerdictKind is what a Verdict does.
type VerdictKind uint8

// The verdicts.
const (
	Continue VerdictKind = iota + 1 // the next rule
	Accept                          // ends this base chain
	Drop                            // ends the packet
	Reject                          // ends the packet and tells its sender
	Return                          // goes back to the calling chain; in a base chain, to its policy
	Jump                            // goes to a chain, and comes back
	Goto                            // goes to a chain, and comes back to the caller of this one
	Queue                           // hands the packet to a program
	Stolen                          // ends the packet here: synproxy, nft's dup/fwd to a device
)

// NATKind says which translation.
type NATKind uint8

// The kinds of NAT.
const (
	DNAT NATKind = iota + 1
	SNAT
	Redirect
	Masquerade
	NetMap // of the destination or the source, by the hook (iptables)
)

// Mask is an And with a constant number.
func Mask(e Expr, mask uint64) Expr { return And{e, Const{{Num: mask}}} }

// SetBits is iptables' VALUE/MASK: e with the bits of mask cleared, then those of value inverted.
func SetBits(e Expr, value, mask uint32) Expr {
	return Xor{Mask(e, uint64(^mask)), Const{{Num: uint64(value)}}}
}
