package iptext

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// baseChains are those in which a ruleset may have rules, in the order in which a packet meets them.
var baseChains = func() (all []rules.Chain) {
	for _, t := range rules.Tables {
		all = append(all, rules.Chain{Table: t, Name: rules.Prerouting}, rules.Chain{Table: t, Name: rules.Output})
	}
	return all
}()

// Differences returns what is wrong with got, all that iptables-save lists of one family, compared with want, the rules as
// they were programmed; nothing if both agree. A difference is a chain that is missing; a rule in one of want's chains that is
// missing, altered or added; a rule in a base chain that is missing, duplicated or out of order; and a foreign rule that
// keeps connections from want's rules. Other foreign rules and chains don't count.
func Differences(f rules.Family, want, got Save) []string {
	var out []string
	say := func(c rules.Chain, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s %s: ", f, c.Table)+fmt.Sprintf(format, args...))
	}
	for _, c := range want.Chains {
		if slices.Contains(got.Chains, c) {
			compareChain(c, want.In(c), got.In(c), say)
		} else {
			say(c, "chain %s is missing", c.Name)
		}
	}
	own := got.Find(want)
	for _, c := range baseChains {
		ahead(c, own.In(c), got, say)
	}
	for _, c := range baseChains {
		compareBase(c, want.In(c), own.In(c), say)
	}
	return out
}

func compareChain(c rules.Chain, want, got []SavedRule, say func(rules.Chain, string, ...any)) {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			say(c, "rule %d of %s is missing: %s", i+1, c.Name, want[i].Line)
		case i >= len(want):
			say(c, "rule %d of %s is not detour's: %s", i+1, c.Name, got[i].Line)
		case want[i].Canonical() != got[i].Canonical():
			say(c, "rule %d of %s is %s, not %s", i+1, c.Name, got[i].Line, want[i].Line)
		}
	}
}

// compareBase compares detour's rules in a base chain; foreign rules may stand between them.
func compareBase(c rules.Chain, want, got []SavedRule, say func(rules.Chain, string, ...any)) {
	same := true
	for _, r := range want {
		switch n := count(got, r); n {
		case 1:
			continue
		case 0:
			say(c, "%s is missing from %s", r.Line, c.Name)
		default:
			say(c, "%s is in %s %d times", r.Line, c.Name, n)
		}
		same = false
	}
	for _, r := range got {
		if count(want, r) == 0 {
			say(c, "%s has %s, which is not detour's", c.Name, r.Line)
			same = false
		}
	}
	for i := range want {
		if same && want[i].Canonical() != got[i].Canonical() {
			say(c, "%s has %s where %s should come first", c.Name, got[i].Line, want[i].Line)
			return
		}
	}
}

func count(list []SavedRule, r SavedRule) int {
	n := 0
	for _, x := range list {
		if x.Canonical() == r.Canonical() {
			n++
		}
	}
	return n
}
