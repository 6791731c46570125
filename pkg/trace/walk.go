package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Walk follows the packet on every way that it may take. It is an error if the packet can't exist, if a chain that it comes to can't be
// read, or if chains call each other in a loop, which no kernel accepts.
func Walk(ns *Namespace, p Packet) (Result, error) {
	p, err := p.normal()
	if err != nil {
		return Result{}, err
	}
	from := start{ns, ns.bases(p.family()), p}
	c := &choices{}
	var leaves []leaf
	for more := true; more; more = c.advance() {
		if len(leaves) == maxWays {
			leaves = append(leaves, tooMany(p, leaves))
			return Result{Packet: p, Ways: flat(leaves)}, nil
		}
		way, err := from.walkOnce(c)
		if err != nil {
			return Result{}, err
		}
		leaves = append(leaves, leaf{way, way.passed})
	}
	r := Result{Packet: p, Ways: join(leaves, 0)}
	return r, from.addMisses(r.Ways)
}

// start is what all walks of a packet have in common.
type start struct {
	ns     *Namespace
	bases  *bases
	packet Packet
}

// tooMany stands for the ways that are not followed.
func tooMany(p Packet, leaves []leaf) leaf {
	rest := 1.0
	for _, l := range leaves {
		rest -= l.Probability
	}
	return leaf{Way: Way{
		Probability: max(rest, 0), Verdict: Unknown, Reason: fmt.Sprintf("there are more than %d ways", maxWays),
		Packet: Final{From: p.Src, To: p.Dst, Mark: p.Mark, CTMark: p.CTMark},
	}}
}

func flat(leaves []leaf) []Way {
	var all []Way
	for _, l := range leaves {
		all = append(all, l.Way)
	}
	return all
}

// walkOnce follows one way: the one that the choices lead to.
func (from start) walkOnce(c *choices) (Way, error) {
	w := from.walk(c)
	w.travel()
	if w.err != nil {
		return Way{}, w.err
	}
	way := w.way()
	way.passed = slices.Clone(c.passed)
	way.Probability = probability(way.passed)
	return way, nil
}

// walk is a packet on one way.
type walk struct {
	start
	choices *choices
	assumed map[string]assumption // what this way assumes of conditions that are not known, by their text
	added   map[*Set][]Element
	deleted map[*Set][][]Value

	family    Family
	src, dst  netip.AddrPort
	in, out   string     // the interfaces, empty in a hook that has none
	outKnown  bool       // the out interface is known
	preferred netip.Addr // the source that the route prefers
	missing   string     // what the last expression that is not known lacks
	socket    bool
	mark      uint32
	ctMark    uint32
	ct        tracking
	zone      uint16
	status    uint32
	original  [2]netip.AddrPort // the connection's source and destination before NAT
	bound     [2]bool           // NAT has decided over the destination, over the source

	hook     Hook
	inBase   *Chain // the base chain at hand
	missesOf place  // where to note the rules that did not match
	steps    []Step
	ended    Outcome // "" while the packet is on its way
	at       *Decision
	reason   string
	local    bool
	stays    bool // the destination is an address of this namespace, whatever Routing knows
	tproxy   netip.AddrPort
	taken    bool // TPROXY has taken the packet
	lost     bool // nat has translated a packet that TPROXY took
	port     uint16
	// Of the rule at hand: itself, its statements that are left, its verdict, what it changed, and how likely it matched.
	current *Rule
	rest    []Statement
	verdict Verdict
	effect  string
	odds    float64
	// returned is the last rule of the base chain at hand that returned, translated the rule that translated the destination.
	returned   *Rule
	translated *Decision
	peeking    bool   // what is evaluated is not on the packet's way
	rerouted   func() // takes the route to which OUTPUT has changed
	err        error
}

// tracking is what connection tracking knows of a packet.
type tracking uint8

const (
	untracked tracking = iota // connection tracking comes later, or can't assign the packet
	template                  // it comes later, but a rule has set the zone: the state is NEW
	notrack                   // a rule keeps it off
	tracked
)

func (from start) walk(c *choices) *walk {
	p := from.packet
	return &walk{
		start: from, choices: c, assumed: map[string]assumption{}, family: p.family(), src: p.Src, dst: p.Dst,
		socket: p.Direction == Out && !p.NoSocket, mark: p.Mark, ctMark: p.CTMark,
	}
}

// travel takes the packet from hook to hook.
func (w *walk) travel() {
	if w.packet.Direction == Out {
		w.send()
		return
	}
	w.in = w.packet.Interface
	if w.pass(Ingress, w.in) && w.pass(Prerouting, "") {
		w.received()
	}
}

// send takes the packet of a local process through OUTPUT and out, or back in on lo.
func (w *walk) send() {
	if !w.routeOut() {
		return
	}
	w.chooseSource()
	if !w.pass(Output, "") {
		return
	}
	if w.rerouted != nil {
		w.rerouted()
	}
	if !w.pass(Postrouting, "") {
		return
	}
	w.status |= StatusConfirmed
	if !w.local {
		w.leave()
		return
	}
	w.in, w.out, w.socket, w.outKnown = Loopback, "", false, true
	before := w.dst.Addr()
	if !w.pass(Prerouting, "") {
		return
	}
	if w.dst.Addr() != before {
		w.received()
		return
	}
	w.input() // on lo, a packet keeps its route, whatever becomes of its mark
}

// received routes a packet that came in.
func (w *walk) received() {
	if !w.routeIn() {
		return
	}
	if w.local {
		w.input()
		return
	}
	if w.taken {
		w.end(Dropped, nil, "the kernel does not forward a packet that TPROXY took: no routing rule leads its mark to a local route")
		return
	}
	if w.pass(Forward, "") && w.pass(Postrouting, "") {
		w.leave()
	}
}

// input delivers the packet.
func (w *walk) input() {
	w.out, w.outKnown = "", true
	if w.pass(Input, "") {
		w.end(w.delivered(), nil, "")
	}
}

func (w *walk) leave() {
	if w.pass(Egress, w.out) {
		w.end(Accepted, nil, "")
	}
}

// delivered is the outcome of a packet that ends in the namespace.
func (w *walk) delivered() Outcome {
	switch {
	case w.taken && w.lost:
		return w.later()
	case w.taken:
		return TProxied
	case w.port != 0:
		return Redirected
	}
	return Accepted
}

// later is the outcome for a connection whose first packet TPROXY has taken and nat translated. If TPROXY takes the later packets, too,
// they are not translated yet at that point, so they do not belong to the connection that the listener has accepted.
func (w *walk) later() Outcome {
	p := w.packet
	p.State, p.CTMark = CTEstablished, w.ctMark
	r, err := Walk(w.ns, p)
	if err != nil {
		w.err = err
		return Unknown
	}
	if slices.ContainsFunc(r.Ways, func(way Way) bool { return way.Verdict == TProxied }) {
		w.reason = "nat translates a connection that TPROXY has taken: the listener resets it at its second packet"
		return Rejected
	}
	return TProxied
}

// end ends the packet. The first end counts; at defaults to what decided last.
func (w *walk) end(o Outcome, at *Decision, reason string) {
	if w.ended != "" {
		return
	}
	w.ended = o
	if at != nil {
		w.at = at
	}
	if reason != "" {
		w.reason = reason
	}
}

func (w *walk) way() Way {
	f := Final{
		From: w.src, To: w.dst, Mark: w.mark, CTMark: w.ctMark, CTZone: w.zone, Local: w.local,
		DNAT: w.status&StatusDNAT != 0, SNAT: w.status&StatusSNAT != 0,
	}
	if !w.local && w.outKnown {
		f.Interface = w.out
	}
	way := Way{Verdict: w.ended, At: w.at, Reason: w.reason, Packet: f, Steps: w.steps}
	if w.ended == Redirected || w.ended == TProxied {
		way.Port = w.port
		if w.taken {
			way.Port = w.tproxy.Port()
		}
	}
	return way
}

func (w *walk) fail(err error) {
	w.err = errors.Join(w.err, err)
	w.ended = Unknown
}

// note records something that no rule did.
func (w *walk) note(text, effect string) {
	w.steps = append(w.steps, Step{Hook: w.hook, Text: text, Effect: effect})
}

// assume says which branch this way takes at a condition that the walk doesn't know. The same condition has the same answer all along.
func (w *walk) assume(condition, reason string, at *Decision, branches []string) int {
	a, ok := w.assumed[condition]
	if !ok {
		a.branch, a.settled = w.choices.choose(choice{branches: len(branches), at: at, reason: reason, says: branches})
		w.assumed[condition] = a
	}
	says := branches[a.branch]
	if a.settled {
		says = eitherWay
	}
	w.steps = append(w.steps, Step{Hook: w.hook, Chain: at.Chain, Rule: at.Rule, Text: at.Text, Unknown: reason, Assumed: says})
	return a.branch
}

// assumption is the answer that a way gives to a condition.
type assumption struct {
	branch  int
	settled bool
}

// chance says which branch this way takes where chance decides.
func (w *walk) chance(odds []float64) int {
	for i, p := range odds {
		if p == 1 {
			return i
		}
	}
	branch, _ := w.choices.choose(choice{branches: len(odds), odds: odds})
	w.odds *= odds[branch]
	return branch
}
