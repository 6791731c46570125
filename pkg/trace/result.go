package trace

import (
	"net/netip"
)

// Outcome is what becomes of a packet.
type Outcome string

// The outcomes.
const (
	Accepted   Outcome = "accepted"   // it is delivered or leaves, to its destination or the one that NAT gave it
	Redirected Outcome = "redirected" // REDIRECT delivers it to a port of this namespace
	TProxied   Outcome = "tproxied"   // it is delivered to a transparent listener
	Dropped    Outcome = "dropped"
	Rejected   Outcome = "rejected" // dropped, and its sender is told
	Unknown    Outcome = "unknown"
)

// Result is every way that a packet may take.
type Result struct {
	Packet Packet
	Ways   []Way
}

// Way is one way of a packet.
type Way struct {
	// Probability is that of this way, or of an outcome once its way is taken. The kernel decides what makes a way Unknown, not chance:
	// each outcome stands for one decision, and those of one way may add up to more than 1.
	Probability float64
	Verdict     Outcome
	// At is what decided; nil if nothing did, because no chain saw the packet.
	At *Decision
	// Reason says why in a few words, where At does not: why the verdict is Unknown, or that routing decided.
	Reason string
	// Port is that of the listener in the namespace that gets a Redirected or TProxied packet.
	Port uint16
	// Packet is the packet at its end.
	Packet Final
	// Steps are what the packet met, in order. Rules that did not match are there only if they could have decided otherwise.
	Steps []Step
	// Outcomes are what may become of a packet whose verdict is Unknown: one way for each decision, with its steps from the start.
	Outcomes []Way
	// Assumes is what an outcome assumes of the condition that its way does not know: "it matches".
	Assumes string

	passed []choice
}

func (w Way) same(other Way) bool {
	at := w.At == other.At || w.At != nil && other.At != nil && *w.At == *other.At
	return at && w.Verdict == other.Verdict && w.Port == other.Port && w.Packet == other.Packet && len(w.Outcomes)+len(other.Outcomes) == 0 && w.Probability == other.Probability
}

// Final is a packet at its end.
type Final struct {
	// From and To are after NAT. An address is invalid if the walk can't know it.
	From, To netip.AddrPort
	Mark     uint32
	CTMark   uint32
	CTZone   uint16
	// Interface is the one by which the packet leaves, or was to leave; empty if it stays in the namespace or the interface is not known.
	Interface string
	// Local says that the packet is delivered in the namespace.
	Local bool
	// DNAT and SNAT say that connection tracking translates the connection.
	DNAT, SNAT bool
}

// Decision is a rule, or the policy of a base chain, or routing.
type Decision struct {
	Chain *Chain // nil for routing
	Rule  *Rule  // nil for a policy
	Text  string // the rule, the policy, the route
}

// Policy reports whether a base chain's policy decided.
func (d Decision) Policy() bool { return d.Chain != nil && d.Rule == nil }

// Step is something that the packet met.
type Step struct {
	Hook  Hook
	Chain *Chain // nil for routing and connection tracking
	Rule  *Rule  // nil for a policy
	// Depth is how many jumps led to the chain.
	Depth int
	// Missed says why the rule did not match; empty if it did: "--dport 80: the destination port is 7000".
	Missed string
	// Unknown says what the walk does not know here, Assumed what this way assumes.
	Unknown, Assumed string
	// Text says what happened where there is no rule: the route, the policy.
	Text string
	// Effect says what changed: "destination becomes 10.0.0.2:80".
	Effect string
	// Odds is how likely the packet goes this way here; 0 where there is no choice.
	Odds float64

	failing int // how many conditions a rule that Missed lacks
}

// Decision is the step as what decides a way.
func (s Step) Decision() *Decision {
	d := &Decision{Chain: s.Chain, Rule: s.Rule, Text: s.Text}
	if s.Rule != nil {
		d.Text = s.Rule.Text
	}
	return d
}
