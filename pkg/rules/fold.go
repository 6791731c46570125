package rules

import (
	"reflect"
	"slices"
	"strings"
)

// Folded returns each chain's rules. It joins neighbours that differ only in one list, of addresses or of ports.
//
// That is right if it makes no difference which of the rules a packet meets, or how many: they have the same target, which
// ends the chain or jumps into a chain whose rules all end it. A packet that returns from such a chain is unchanged, so it
// would return a second time, too. The order of neighbours with such a target doesn't matter either. So istio's rules for
// TCP and UDP, which alternate, become one for each.
func (rs Ruleset) Folded() map[Chain][]Rule {
	byChain, folded := map[Chain][]Rule{}, map[Chain][]Rule{}
	for _, r := range rs.Rules {
		byChain[r.Chain] = append(byChain[r.Chain], r)
	}
	for c := range byChain {
		folded[c] = fold(byChain, c)
	}
	return folded
}

func fold(byChain map[Chain][]Rule, in Chain) []Rule {
	var out []group
	run := 0 // where in out the neighbours begin
	for _, r := range byChain[in] {
		g := newGroup(r, byChain)
		if run < len(out) && !out[run].neighbour(g) {
			run = len(out)
		}
		if i := slices.IndexFunc(out[run:], g.joins); i >= 0 {
			out[run+i].join(g)
		} else {
			out = append(out, g)
		}
	}
	folded := make([]Rule, len(out))
	for i, g := range out {
		if folded[i] = g.first; g.joined {
			g.Why = strings.Join(g.whys, "; ")
			folded[i] = g.Rule
		}
	}
	return folded
}

// group is rules that have become one.
type group struct {
	Rule
	first  Rule // unchanged
	joined bool // there is more than one
	list   int  // the match that is a list; alone if no rule may be joined
	whys   []string
}

const alone = -1

// newGroup returns a group with matches of its own: joining changes them.
func newGroup(r Rule, byChain map[Chain][]Rule) group {
	g := group{Rule: r, first: r, list: alone, whys: []string{r.Why}}
	if !comesBackUnchanged(r, byChain) {
		return g
	}
	g.Matches = slices.Clone(r.Matches)
	lists := 0
	for i, m := range g.Matches {
		if list := listOf(m); list != nil {
			g.Matches[i], g.list = list, i
			lists++
		}
	}
	if lists != 1 {
		g.list = alone
	}
	return g
}

// comesBackUnchanged reports whether a packet that meets the rule comes back to the chain unchanged, if at all.
func comesBackUnchanged(r Rule, byChain map[Chain][]Rule) bool {
	if jump, ok := r.Target.(Jump); ok {
		into := byChain[Chain{Table: r.Chain.Table, Name: string(jump)}]
		return !slices.ContainsFunc(into, func(r Rule) bool { return !ends(r.Target) })
	}
	return ends(r.Target)
}

func ends(t Target) bool {
	switch t.(type) {
	case Return, Accept, Drop, Redirect, DNAT, TProxy:
		return true
	case Jump, SetMark, SaveMark, RestoreMark, Zone, OpenGate:
		return false
	}
	return false
}

// listOf returns the match as a list that may grow, nil if it is none.
func listOf(m Match) Match {
	switch m := m.(type) {
	case Source:
		return Source{Prefixes: slices.Clip(m.Prefixes)}
	case Destination:
		if !m.Not {
			return Destination{Prefixes: slices.Clip(m.Prefixes)}
		}
	case DstPort:
		if !m.Not {
			return DstPorts{Ports: []uint16{m.Port}}
		}
	case DstPorts:
		if !m.Not {
			return DstPorts{Ports: slices.Clip(m.Ports)}
		}
	default:
	}
	return nil
}

// neighbour reports whether the order of the two makes no difference, and their matches are of the same types.
func (g group) neighbour(o group) bool {
	sameType := func(a, b Match) bool { return reflect.TypeOf(a) == reflect.TypeOf(b) }
	return g.list != alone && g.list == o.list && g.Target == o.Target && slices.EqualFunc(g.Matches, o.Matches, sameType)
}

// joins reports whether the two neighbours differ in the list only.
func (g group) joins(o group) bool {
	if !g.neighbour(o) {
		return false
	}
	for i := range g.Matches {
		if i != g.list && !reflect.DeepEqual(g.Matches[i], o.Matches[i]) {
			return false
		}
	}
	return true
}

func (g *group) join(o group) {
	g.joined = true
	switch list := g.Matches[g.list].(type) {
	case Source:
		list.Prefixes = append(list.Prefixes, o.Matches[g.list].(Source).Prefixes...)
		g.Matches[g.list] = list
	case Destination:
		list.Prefixes = append(list.Prefixes, o.Matches[g.list].(Destination).Prefixes...)
		g.Matches[g.list] = list
	case DstPorts:
		list.Ports = append(list.Ports, o.Matches[g.list].(DstPorts).Ports...)
		g.Matches[g.list] = list
	default: // listOf makes no others
	}
	if !slices.Contains(g.whys, o.Why) {
		g.whys = append(g.whys, o.Why)
	}
}
