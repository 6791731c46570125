package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// station is what a packet meets in a hook: a base chain, connection tracking, or all chains of type nat, which connection tracking
// calls together.
type station struct {
	priority int
	age      age // among those of the same priority
	visit    func()
}

// pass takes the packet through a hook. It returns false if the packet has ended.
func (w *walk) pass(h Hook, device string) bool {
	w.hook = h
	for _, s := range w.stations(h, device) {
		if s.visit(); w.ended != "" {
			return false
		}
	}
	return true
}

func (w *walk) stations(h Hook, device string) []station {
	var all []station
	var nat []*Chain
	family := w.family
	if h == Ingress || h == Egress {
		family = Netdev
	}
	if h == Prerouting || h == Output {
		all = append(all, station{PriorityConntrack, ageOfTracking, w.track})
	}
	for _, c := range w.bases.hooked(h, family, device) {
		if c.Base.Type == NATChain {
			nat = append(nat, c)
			continue
		}
		all = append(all, station{c.Base.Priority, w.bases.ages[c], func() { w.base(c) }})
	}
	if w.bases.translate {
		switch h {
		case Prerouting, Output:
			all = append(all, station{PriorityDNAT, ageOfNAT, func() { w.nat(nat, destination) }})
		case Input, Postrouting:
			all = append(all, station{PrioritySNAT, ageOfNAT, func() { w.nat(nat, source) }})
		default:
		}
	}
	slices.SortStableFunc(all, func(a, b station) int { return cmp.Or(a.priority-b.priority, int(a.age-b.age)) })
	return all
}

// track is connection tracking.
func (w *walk) track() {
	if w.ct != untracked && w.ct != template {
		return
	}
	if w.packet.State == CTInvalid {
		w.ct, w.zone = untracked, 0
		return
	}
	w.ct, w.original = tracked, [2]netip.AddrPort{destination: w.dst, source: w.src}
	if w.packet.State == CTEstablished {
		w.status |= StatusSeenReply | StatusConfirmed
	}
}

// manip says which end of a connection NAT translates.
type manip int

const (
	destination manip = iota
	source
)

// nat asks the chains of type nat about a connection's first packet, unless NAT has decided over that end of it already.
func (w *walk) nat(chains []*Chain, m manip) {
	if w.ct != tracked || w.packet.State&(CTNew|CTRelated) == 0 || w.bound[m] {
		return
	}
	for _, c := range chains {
		if w.base(c); w.ended != "" || w.bound[m] {
			return
		}
	}
	w.bound[m] = true
}

// base takes the packet through a base chain.
func (w *walk) base(c *Chain) {
	before := w.routed()
	w.returned, w.inBase = nil, c
	v, rule := w.chain(c, 0)
	if w.err != nil {
		return
	}
	switch v.Kind {
	case Drop, Stolen:
		w.end(Dropped, ruleDecision(rule), "")
	case Reject:
		w.end(Rejected, ruleDecision(rule), "")
	case Queue:
		w.end(Unknown, ruleDecision(rule), "the rule hands the packet to a program, which decides")
	case Accept:
		w.decide(c, ruleDecision(rule))
	default:
		w.policy(c)
	}
	if c.Base.Type == RouteChain && w.ended == "" && w.routed() != before {
		w.reroute()
	}
}

// routed is what routing looks at.
func (w *walk) routed() [3]any { return [3]any{w.src.Addr(), w.dst.Addr(), w.mark} }

func (w *walk) policy(c *Chain) {
	policy := c.Base.Policy.Kind
	name := "ACCEPT"
	if policy == Drop {
		name = "DROP"
	}
	d := &Decision{Chain: c, Text: "policy " + name}
	w.steps = append(w.steps, Step{Hook: w.hook, Chain: c, Text: d.Text})
	if policy == Drop {
		w.end(Dropped, d, "")
		return
	}
	if w.returned != nil {
		d = ruleDecision(w.returned)
	}
	w.decide(c, d)
}

// ruleDecision returns nil for no rule, as in a walk that failed.
func ruleDecision(r *Rule) *Decision {
	if r == nil {
		return nil
	}
	return &Decision{Chain: r.Chain, Rule: r, Text: r.Text}
}

// decide remembers what let the packet pass: the rule that translated its destination, else the last rule that accepted or returned,
// else the last policy. Base chains that translate the source decide nothing.
func (w *walk) decide(base *Chain, d *Decision) {
	switch {
	case base.Base.Type == NATChain && (w.hook == Input || w.hook == Postrouting):
	case w.translated != nil:
		w.at = w.translated
	case w.at == nil || w.at.Rule == nil || d.Rule != nil:
		w.at = d
	}
}

// maxDepth is how deep chains may call each other: far more than any kernel lets them.
const maxDepth = 64

// Chains that call each other again and again could take for ever. maxRules is how many rules all ways of a packet may meet, which is
// enough for thousands of ways through thousands of rules, maxSteps how many steps one way may have.
const (
	maxRules = 20_000_000
	maxSteps = 100_000
)

// chain takes the packet through a chain and those it calls. The verdict is that of the rule that ended it; its kind is 0 if none did.
func (w *walk) chain(c *Chain, depth int) (Verdict, *Rule) {
	if depth > maxDepth {
		w.fail(fmt.Errorf("table %s %s chain %s: chains call each other in a loop", c.Table.Family, c.Table.Name, c.Name))
		return Verdict{Kind: Drop}, nil
	}
	if c.Rules == nil {
		return Verdict{}, nil
	}
	rules, err := c.Rules()
	if err != nil {
		w.fail(fmt.Errorf("read table %s %s chain %s: %w", c.Table.Family, c.Table.Name, c.Name, err))
		return Verdict{Kind: Drop}, nil
	}
	for _, r := range rules {
		v := w.rule(r, depth)
		if w.err != nil {
			return Verdict{Kind: Drop}, r
		}
		switch v.Kind {
		case Jump, Goto:
			to := c.Table.Chain(v.Chain)
			if to == nil {
				w.fail(fmt.Errorf("%s: it leads to chain %s, which the table does not have", r, v.Chain))
				return Verdict{Kind: Drop}, r
			}
			inner, by := w.chain(to, depth+1)
			if inner.Kind != 0 || v.Kind == Goto {
				return inner, by
			}
		case Return:
			w.returned = r
			return Verdict{}, nil
		case 0, Continue:
		default:
			return v, r
		}
	}
	return Verdict{}, nil
}

// rule runs the statements of a rule.
func (w *walk) rule(r *Rule, depth int) Verdict {
	if w.choices.rules++; w.choices.rules > maxRules || len(w.steps) > maxSteps {
		w.fail(fmt.Errorf("table %s %s chain %s: the packet meets too many rules: chains call each other again and again",
			r.Chain.Table.Family, r.Chain.Table.Name, r.Chain.Name))
		return Verdict{}
	}
	w.verdict, w.current, w.odds, w.effect = Verdict{}, r, 1, ""
	at := len(w.steps)
	for i, s := range r.Statements {
		w.rest = r.Statements[i+1:]
		switch s.run(w) {
		case missed:
			w.deepen(at, depth)
			if w.missesOf.base != nil {
				w.miss(r, s, depth)
			}
			return Verdict{}
		case ended:
			w.record(at, r, depth)
			return w.verdict
		case goOn:
		}
	}
	w.record(at, r, depth)
	return w.verdict
}

// record notes that the rule matched. Steps behind at are conditions of the rule that the walk does not know.
func (w *walk) record(at int, r *Rule, depth int) {
	w.deepen(at, depth)
	s := Step{Hook: w.hook, Chain: r.Chain, Rule: r, Depth: depth, Effect: w.effect}
	if w.odds < 1 {
		s.Odds = w.odds
	}
	w.steps = append(w.steps, s)
}

// deepen gives the steps behind at their depth.
func (w *walk) deepen(at, depth int) {
	for i := range w.steps[at:] {
		w.steps[at+i].Depth = depth
	}
}

// idle reports whether what is left of the rule at hand neither changes nor ends anything: a condition does not matter then.
func (w *walk) idle() bool {
	for _, s := range w.rest {
		switch s.(type) {
		case Match, AnyOf, Chance, UnknownMatch, Silent:
		default:
			return false
		}
	}
	return true
}
