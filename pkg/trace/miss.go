package trace

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Rules that did not match are noted for so many ways, and so many for each.
const (
	explainedWays = 16
	nearMisses    = 8
)

// addMisses adds to each way the rules that did not match and could have decided otherwise: those in the base chain that decided, and in
// the chains that it calls.
func (from start) addMisses(ways []Way) error {
	left := explainedWays
	return visit(ways, func(w *Way) error {
		if left == 0 || w.At == nil || w.At.Chain == nil || len(w.Outcomes) > 0 || len(w.passed) == 0 && w.Reason != "" {
			return nil
		}
		left--
		again := from.walk(&choices{passed: w.passed})
		again.missesOf = w.decidedIn()
		if again.travel(); again.err != nil {
			return again.err
		}
		w.Steps = keepNearest(again.steps)
		return nil
	})
}

func visit(ways []Way, f func(*Way) error) error {
	for i := range ways {
		if err := f(&ways[i]); err != nil {
			return err
		}
		if err := visit(ways[i].Outcomes, f); err != nil {
			return err
		}
	}
	return nil
}

// place is a base chain in its hook, with the chains that it calls.
type place struct {
	hook Hook
	base *Chain
}

// decidedIn is where the way was decided.
func (w Way) decidedIn() place {
	var at place
	for _, s := range w.Steps {
		if s.Chain != nil && s.Chain.Base != nil {
			at = place{s.Hook, s.Chain}
		}
		if s.Chain == w.At.Chain && s.Rule == w.At.Rule {
			return at
		}
	}
	return place{}
}

// miss notes that a rule did not match because of a statement.
func (w *walk) miss(r *Rule, s Statement, depth int) {
	if (place{w.hook, w.inBase}) != w.missesOf || !decisive(r) {
		return
	}
	if elsewhere(r, s) {
		return
	}
	if n := len(w.steps); n > 0 && w.steps[n-1].Rule == r && w.steps[n-1].Assumed != "" {
		return // this way assumes so
	}
	w.steps = append(w.steps, Step{Hook: w.hook, Chain: r.Chain, Rule: r, Depth: depth, Missed: w.explainMiss(s), failing: 1 + w.failing()})
}

// elsewhere reports whether the rule is for the other address family, or leads packets of another address to their chain, as kube-proxy
// does for each Service.
func elsewhere(r *Rule, failed Statement) bool {
	v, jumps := r.Statements[len(r.Statements)-1].(Verdict)
	m, ok := failed.(Match)
	if ok && m.Left == Expr(NFProto) {
		return true
	}
	return jumps && (v.Kind == Jump || v.Kind == Goto) && ok && (m.Left == Expr(Daddr) || m.Left == Expr(Saddr))
}

// decisive reports whether the rule would end or translate the packet, or look further at a packet of its own kind.
func decisive(r *Rule) bool {
	conditions := 0
	for _, s := range r.Statements {
		switch s := s.(type) {
		case NAT, TProxy, VerdictMap, UnknownEffect:
			return true
		case Verdict:
			return s.Kind != Continue && (s.Kind != Jump && s.Kind != Goto || conditions > 1)
		case Match, AnyOf:
			conditions++
		default:
		}
	}
	return false
}

// failing is how many of the conditions that are left fail as well. The packet did not come to them, so chance decides nothing there.
func (w *walk) failing() int {
	w.peeking = true
	defer func() { w.peeking = false }()
	n := 0
	for _, s := range w.rest {
		switch s := s.(type) {
		case Match:
			if holds, known, _ := s.holds(w); known && !holds {
				n++
			}
		case AnyOf:
			if holds, known, _ := s.holds(w); known && !holds {
				n++
			}
		default:
		}
	}
	return n
}

// keepNearest drops all but the rules that failed by the fewest conditions.
func keepNearest(steps []Step) []Step {
	var all []int
	for i, s := range steps {
		if s.Missed != "" {
			all = append(all, i)
		}
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(steps[a].failing, steps[b].failing) })
	all = all[:min(len(all), nearMisses)]
	var out []Step
	for i, s := range steps {
		if s.Missed == "" || slices.Contains(all, i) {
			out = append(out, s)
		}
	}
	return out
}

// explainMiss says why a statement did not hold.
func (w *walk) explainMiss(s Statement) string {
	switch s := s.(type) {
	case Match:
		return s.Text + ": " + w.has(s.Left)
	case AnyOf:
		var all []string
		for _, m := range s.Matches {
			if text := w.has(m.Left); !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
		return s.Text + ": " + strings.Join(all, ", ")
	case Chance:
		return s.Text + ": chance decided otherwise"
	case UnknownMatch:
		return s.Text + ": not known"
	case VerdictMap:
		return "the map has nothing for it: " + w.has(s.Key)
	default:
		return "it has nothing for this packet"
	}
}

// fieldNames are the fields as a reader calls them.
var fieldNames = map[Field]string{
	NFProto: "address family", L4Proto: "protocol", Saddr: "source", Daddr: "destination", Sport: "source port", Dport: "destination port",
	ICMPType: "ICMP type", ICMPCode: "ICMP code", TCPFlags: "TCP flags", IIFName: "interface that it came in on",
	OIFName: "interface by which it leaves", SKUID: "user", SKGID: "group", Mark: "mark", CTMark: "connection's mark",
	CTState: "connection's state", CTStatus: "connection's status", CTDir: "direction", CTOrigSaddr: "connection's source",
	CTOrigDaddr: "connection's destination", CTOrigSport: "connection's source port", CTOrigDport: "connection's destination port",
	CTZone: "zone", SaddrType: "source's type", DaddrType: "destination's type", SaddrTypeIIF: "source's type", DaddrTypeIIF: "destination's type",
	SaddrTypeOIF: "source's type", DaddrTypeOIF: "destination's type",
}

// has says what the packet has where an expression looks.
func (w *walk) has(e Expr) string {
	switch e := e.(type) {
	case Concat:
		var all []string
		for _, part := range e {
			all = append(all, w.has(part))
		}
		return strings.Join(all, ", ")
	case And:
		return w.has(e.A)
	case Or:
		return w.has(e.A)
	case Xor:
		return w.has(e.A)
	case Shift:
		return w.has(e.A)
	case Lookup:
		return w.has(e.Key)
	case Field:
		return w.hasField(e)
	case Const, Numgen, UnknownExpr:
	}
	return "it has another value"
}

func (w *walk) hasField(f Field) string {
	values, known := f.eval(w)
	switch {
	case !known:
		return "the " + fieldNames[f] + " is not known"
	case len(values) == 0 || values[0] == Value{} && (f == IIFName || f == OIFName):
		return "it has no " + fieldNames[f]
	}
	return fmt.Sprintf("the %s is %s", fieldNames[f], readable(f, values[0]))
}

// readable prints a value as its field has it.
func readable(f Field, v Value) string {
	switch f {
	case Mark, CTMark, CTStatus, TCPFlags:
		return fmt.Sprintf("%#x", v.Num)
	case CTState:
		return stateNames[v.Num]
	case L4Proto:
		return ProtocolName(uint8(v.Num))
	case SaddrType, DaddrType, SaddrTypeIIF, DaddrTypeIIF, SaddrTypeOIF, DaddrTypeOIF:
		for name, number := range AddrTypes {
			if number == v.Num {
				return name
			}
		}
	default:
	}
	return v.String()
}

var stateNames = map[uint64]string{
	CTInvalid: "INVALID", CTEstablished: "ESTABLISHED", CTRelated: "RELATED", CTNew: "NEW", CTUntracked: "UNTRACKED",
}
