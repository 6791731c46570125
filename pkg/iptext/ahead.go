package iptext

import (
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/detour-cni/detour/pkg/rules"
)

// ahead says which rules of others keep every TCP connection, of an interface at least, from want's rules: those that stand
// ahead of one of them in a base chain and end the chain, or jump to where that is done, and those that have connections not
// tracked, which no rule of nat is asked for. What matches less than that, an address, a port, a user, is somebody's wish
// and no difference. What drops packets lets none past the proxy.
func ahead(want, got Save, say func(rules.Chain, string, ...any)) {
	for _, t := range rules.Tables {
		for _, name := range []string{rules.Prerouting, rules.Output} {
			c := rules.Chain{Table: t, Name: name}
			list, own := got.In(c), got.Owned(want).In(c)
			isOwn := func(r SavedRule) bool { return slices.Contains(own, r) }
			last := len(list)
			for last > 0 && !isOwn(list[last-1]) {
				last--
			}
			foreign := slices.DeleteFunc(list[:last:last], isOwn)
			if by := endedBy(foreign, got, takes, nil); by != nil {
				say(c, "%s has %s ahead of detour's rules: what it takes is not redirected", name, strings.Join(by, ", and "))
			}
			if by := endedBy(slices.DeleteFunc(got.In(c), isOwn), got, untracks, nil); by != nil {
				say(c, "%s has %s: a connection that is not tracked is not redirected", name, strings.Join(by, ", and "))
			}
		}
	}
}

// takes and untracks are the targets that are looked for.
var (
	takes    = []string{"ACCEPT", "REDIRECT", "DNAT", "NETMAP", "TPROXY"}
	untracks = []string{"NOTRACK", "CT --notrack"}
)

// endedBy walks through a chain's rules as a packet of TCP does that meets no narrow rule. It returns the rule that does
// what is looked for and those that led there, nil if there is none. From are the chains that the packet came from.
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
			return here // nothing comes back from there
		case verb == "-g":
			return nil
		}
	}
	return nil
}

// conditions are those of iptables-save that leave a rule broad, and what says nothing.
var conditions = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(-p tcp|-m tcp|-m comment --comment ("(\\.|[^"\\])*"|\S+)|! -[io] lo|-[io] (l|lo\S+|[^l]\S*|l[^o]\S*)|-m (conntrack --ctstate|state --state) (\S+,)?NEW(,\S+)?) `)
})

// broad takes a rule apart that holds for all TCP connections of an interface at least; verb is empty for any other.
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
