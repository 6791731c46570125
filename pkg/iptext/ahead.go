package iptext

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/detour-cni/detour/pkg/rules"
)

// ahead reports foreign rules of a base chain that keep every TCP connection, of at least one interface, from detour's own
// rules. Some end the chain ahead of an own rule, or lead to a rule that does; others exempt connections from tracking, so
// that they never reach table nat. A narrower rule, for an address, a port or a user, counts as intended. A rule that
// drops packets lets none past the proxy.
func ahead(c rules.Chain, own []SavedRule, got Save, say func(rules.Chain, string, ...any)) {
	isOwn := func(r SavedRule) bool { return slices.Contains(own, r) }
	list := got.In(c)
	last := len(list)
	for last > 0 && !isOwn(list[last-1]) {
		last--
	}
	foreign := func(list []SavedRule) []SavedRule { return slices.DeleteFunc(slices.Clone(list), isOwn) }
	if by := endedBy(foreign(list[:last]), got, takes, nil); by != nil {
		say(c, "%s has %s ahead of detour's rules: what it takes is not redirected", c.Name, strings.Join(by, ", and "))
	}
	if by := endedBy(foreign(list), got, untracks, nil); by != nil {
		say(c, "%s has %s: a connection that is not tracked is not redirected", c.Name, strings.Join(by, ", and "))
	}
}

// takes and untracks are the targets that ahead looks for.
var (
	takes    = []string{"ACCEPT", "REDIRECT", "DNAT", "NETMAP", "TPROXY"}
	untracks = []string{"NOTRACK", "CT --notrack"}
)

// endedBy walks through a chain's rules like a TCP packet that no narrow rule matches. It returns the rule that has a wanted
// target and those that led there, nil if there is none. from are the chains that the packet came from.
func endedBy(list []SavedRule, all Save, wanted, from []string) []string {
	for _, r := range list {
		verb, target, rest := broad(r.Line)
		here := []string{r.Line}
		switch {
		case verb == "":
			continue
		case slices.Contains(wanted, target), slices.Contains(wanted, target+" "+rest):
			return here
		case target == "RETURN" && from == nil && slices.Contains(wanted, "ACCEPT"):
			return here // the chain's policy, which accepts
		case slices.Contains([]string{"RETURN", "ACCEPT", "DROP"}, target):
			return nil
		}
		into := rules.Chain{Table: r.Chain.Table, Name: target}
		if !slices.Contains(all.Chains, into) || slices.Contains(from, target) {
			continue
		}
		by := endedBy(all.In(into), all, wanted, append(slices.Clip(from), target))
		switch {
		case by != nil:
			return append(here, by...)
		case verb == "-g" && from == nil && slices.Contains(wanted, "ACCEPT"):
			return here // the packet does not come back
		case verb == "-g":
			return nil
		}
	}
	return nil
}

// conditions are those that leave a rule broad, and comments, as iptables-save prints them.
var conditions = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(-p tcp|-m tcp|-m comment --comment ("(\\.|[^"\\])*"|\S+)|! -[io] lo|-[io] (l|lo\S+|[^l]\S*|l[^o]\S*)|-m (conntrack --ctstate|state --state) (\S+,)?NEW(,\S+)?) `)
})

// broad splits a rule that matches all TCP connections of at least one interface; verb is empty for any other rule.
func broad(line string) (verb, target, rest string) {
	_, line, _ = strings.Cut(strings.TrimPrefix(line, "-A ")+" ", " ")
	for {
		condition := conditions().FindString(line)
		if condition == "" {
			break
		}
		line = line[len(condition):]
	}
	verb, line, _ = strings.Cut(line, " ")
	if verb != "-j" && verb != "-g" {
		return "", "", ""
	}
	target, rest, _ = strings.Cut(line, " ")
	return verb, target, strings.TrimSpace(rest)
}
