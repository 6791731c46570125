package nftables

import (
	"reflect"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// fold returns a chain's rules with those joined that stand together and differ in one list only, of addresses or of
// ports: a set has room for any number and is looked up once.
//
// That is right where it makes no difference which of the rules a packet meets, nor how many: their target is the same,
// and it ends the chain, or is a jump into a chain all of whose rules end it. A packet that comes back from there is as it
// was, so going there again would bring it back again. Among neighbours with one such target even the order is free; those
// with matches of the same types are taken together, as istio's for TCP and UDP in turns, which leave one for each.
func fold(byChain map[rules.Chain][]rules.Rule, in rules.Chain) []rules.Rule {
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
	folded := make([]rules.Rule, len(out))
	for i, g := range out {
		g.Why = strings.Join(g.whys, "; ")
		folded[i] = g.Rule
	}
	return folded
}

// group is rules that have become one.
type group struct {
	rules.Rule
	list int // the match that is a list; alone if it can't be joined
	whys []string
}

const alone = -1

// newGroup has matches of its own, so that others may be joined to it.
func newGroup(r rules.Rule, byChain map[rules.Chain][]rules.Rule) group {
	g := group{r, alone, []string{r.Why}}
	if !returns(r, byChain) {
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

// returns reports whether a packet that meets the rule either never comes back to the chain or does so as it was.
func returns(r rules.Rule, byChain map[rules.Chain][]rules.Rule) bool {
	if jump, ok := r.Target.(rules.Jump); ok {
		into := byChain[rules.Chain{Table: r.Chain.Table, Name: string(jump)}]
		return !slices.ContainsFunc(into, func(r rules.Rule) bool { return !ends(r.Target) })
	}
	return ends(r.Target)
}

func ends(t rules.Target) bool {
	switch t.(type) {
	case rules.Return, rules.Accept, rules.Drop, rules.Redirect, rules.DNAT, rules.TProxy:
		return true
	}
	return false
}

// listOf returns the match as the list that may become longer, nil if it is none.
func listOf(m rules.Match) rules.Match {
	switch m := m.(type) {
	case rules.Source:
		return rules.Source{Prefixes: slices.Clip(m.Prefixes)}
	case rules.Destination:
		if !m.Not {
			return rules.Destination{Prefixes: slices.Clip(m.Prefixes)}
		}
	case rules.DstPort:
		if !m.Not {
			return rules.DstPorts{Ports: []uint16{m.Port}}
		}
	case rules.DstPorts:
		if !m.Not {
			return rules.DstPorts{Ports: slices.Clip(m.Ports)}
		}
	}
	return nil
}

// neighbour reports whether the order of the two makes no difference, and their matches are of the same types.
func (g group) neighbour(o group) bool {
	sameType := func(a, b rules.Match) bool { return reflect.TypeOf(a) == reflect.TypeOf(b) }
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
	switch list := g.Matches[g.list].(type) {
	case rules.Source:
		list.Prefixes = append(list.Prefixes, o.Matches[g.list].(rules.Source).Prefixes...)
		g.Matches[g.list] = list
	case rules.Destination:
		list.Prefixes = append(list.Prefixes, o.Matches[g.list].(rules.Destination).Prefixes...)
		g.Matches[g.list] = list
	case rules.DstPorts:
		list.Ports = append(list.Ports, o.Matches[g.list].(rules.DstPorts).Ports...)
		g.Matches[g.list] = list
	}
	if !slices.Contains(g.whys, o.Why) {
		g.whys = append(g.whys, o.Why)
	}
}
