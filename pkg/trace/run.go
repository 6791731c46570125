package trace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// control says how a rule goes on after a statement.
type control uint8

const (
	goOn control = iota
	missed
	ended
)

func (m Match) run(w *walk) control {
	switch holds, known, unknown := m.holds(w); {
	case !known:
		return w.unknown(m.Text, unknown)
	case !holds:
		return missed
	}
	return goOn
}

// holds reports whether the match holds, and if that is not known, why.
func (m Match) holds(w *walk) (holds, known bool, unknown string) {
	values, known := m.Left.eval(w)
	switch {
	case !known:
		return false, false, w.missing
	case values == nil:
		return m.Not && m.NotOfNone, true, ""
	case m.Right.Unknown != "":
		return false, false, m.Right.Unknown
	}
	return (w.find(m.Right, values) != nil) != m.Not, true, ""
}

func (a AnyOf) run(w *walk) control {
	switch holds, known, unknown := a.holds(w); {
	case !known:
		return w.unknown(a.Text, unknown)
	case !holds:
		return missed
	}
	return goOn
}

func (a AnyOf) holds(w *walk) (holds, known bool, unknown string) {
	known = true
	for _, m := range a.Matches {
		one, knownOne, why := m.holds(w)
		if one {
			return !a.Not, true, ""
		}
		if !knownOne {
			known, unknown = false, why
		}
	}
	return a.Not, known, unknown
}

func (w *walk) met(holds bool) control {
	if holds {
		return goOn
	}
	return missed
}

func (c Chance) run(w *walk) control {
	if w.idle() && c.P > 0 && c.P < 1 {
		return w.eitherWay("chance decides")
	}
	return w.met(w.chance([]float64{c.P, 1 - c.P}) == 0)
}

func (u UnknownMatch) run(w *walk) control { return w.unknown(u.Text, u.Reason) }

// unknown goes both ways at a match, unless it doesn't matter.
func (w *walk) unknown(text, reason string) control {
	if reason == "" {
		reason = "it is not known whether " + text + " matches"
	}
	if w.idle() {
		return w.eitherWay(reason)
	}
	return w.met(w.assume(text, reason, ruleDecision(w.current), []string{"it matches", "it does not match"}) == 0)
}

// eitherWay notes a condition that does not matter.
func (w *walk) eitherWay(reason string) control {
	r := w.current
	w.steps = append(w.steps, Step{Hook: w.hook, Chain: r.Chain, Rule: r, Unknown: reason, Assumed: eitherWay})
	return missed
}

func (u UnknownEffect) run(w *walk) control {
	reason := u.Reason
	if reason == "" {
		reason = "it is not known what " + u.Text + " does"
	}
	if w.assume(u.Text, reason, ruleDecision(w.current), []string{"it lets the packet go on", "it ends the packet"}) == 0 {
		return goOn
	}
	w.end(Unknown, ruleDecision(w.current), reason)
	w.verdict = Verdict{Kind: Stolen}
	return ended
}

func (Silent) run(*walk) control { return goOn }

func (a Assign) run(w *walk) control {
	values, known := a.Value.eval(w)
	switch {
	case !known:
		w.assume(a.Text(), w.missing, ruleDecision(w.current), []string{"the mark stays as it is"})
		return goOn
	case len(values) == 0 && a.IfAny:
		return goOn
	case len(values) == 0:
		return missed
	}
	mark := uint32(values[0].Num)
	switch {
	case a.Field == Mark:
		w.change("mark becomes %#x", mark)
		w.mark = mark
	case w.ct == tracked:
		w.change("the connection's mark becomes %#x", mark)
		w.ctMark = mark
	}
	return goOn
}

// Text names what is assigned.
func (a Assign) Text() string {
	if a.Field == CTMark {
		return "the connection's new mark"
	}
	return "the packet's new mark"
}

// change notes what a rule changes.
func (w *walk) change(format string, args ...any) {
	if w.effect != "" {
		w.effect += ", "
	}
	w.effect += fmt.Sprintf(format, args...)
}

func (v Verdict) run(w *walk) control {
	w.verdict = v
	return ended
}

func (v VerdictMap) run(w *walk) control {
	values, known := v.Key.eval(w)
	switch {
	case !known:
		return w.unknown(v.Text, w.missing)
	case values == nil:
		return missed
	case v.Map.Unknown != "":
		return w.unknown(v.Text, v.Map.Unknown)
	}
	e := w.find(v.Map, values)
	if e == nil {
		return missed
	}
	w.verdict = e.Verdict
	return ended
}

func (t TProxy) run(w *walk) control {
	addr := t.Addr
	if !addr.IsValid() || addr.IsUnspecified() {
		addr = w.dst.Addr()
	}
	port := t.Port
	if port == 0 {
		port = w.dst.Port()
	}
	w.taken, w.tproxy = true, netip.AddrPortFrom(addr, port)
	w.translated = ruleDecision(w.current)
	w.change("a transparent listener at port %d takes it", port)
	return goOn
}

func (NoTrack) run(w *walk) control {
	if w.ct == untracked {
		w.ct = notrack
		w.change("connection tracking will not see it")
	}
	return goOn
}

func (z SetZone) run(w *walk) control {
	if w.ct == untracked { // the first zone counts, and a connection keeps its own
		w.ct, w.zone = template, z.Zone
		w.change("the connection is tracked in zone %d", z.Zone)
	}
	return goOn
}

func (a Add) run(w *walk) control {
	values, known := a.Key.eval(w)
	if known && values == nil {
		return missed
	}
	if known && w.find(a.Set, values) == nil {
		var key []Range
		for _, v := range values {
			key = append(key, Just(v))
		}
		if w.added == nil {
			w.added = map[*Set][]Element{}
		}
		w.added[a.Set] = append(w.added[a.Set], Element{Key: key})
		w.change("%s goes into set %s", join2(values), a.Set.Name)
	}
	return goOn
}

func (d Delete) run(w *walk) control {
	values, known := d.Key.eval(w)
	if known && values == nil {
		return missed
	}
	if known {
		if w.deleted == nil {
			w.deleted = map[*Set][][]Value{}
		}
		w.deleted[d.Set] = append(w.deleted[d.Set], values)
		w.change("%s leaves set %s", join2(values), d.Set.Name)
	}
	return goOn
}

func join2(values []Value) string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	return strings.Join(all, " . ")
}

// find looks a key up in a set as it is at this point of the walk.
func (w *walk) find(s *Set, key []Value) *Element {
	if slices.ContainsFunc(w.deleted[s], func(gone []Value) bool { return slices.Equal(gone, key) }) {
		return nil
	}
	if e := s.find(key); e != nil {
		return e
	}
	added := w.added[s]
	for i := range added {
		if added[i].has(key) {
			return &added[i]
		}
	}
	return nil
}
