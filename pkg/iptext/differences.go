package iptext

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Differences returns what is wrong with got, the kernel's rules of one family, against want, the rules as they were
// programmed: a chain that is missing, a rule of one of want's chains that is missing, altered or added, a rule in a base
// chain that is missing, there more than once or out of order, and one of somebody else's that takes everything ahead of
// them. Other rules and chains of others are nobody's business here. got is all that iptables-save lists. Nothing means that
// both agree.
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
	ahead(want, got, say)
	want, got = want.Owned(want), got.Owned(want)
	for _, t := range rules.Tables {
		for _, name := range []string{rules.Prerouting, rules.Output} {
			c := rules.Chain{Table: t, Name: name}
			compareBase(c, want.In(c), got.In(c), say)
		}
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

// compareBase compares what of a base chain is detour's; between its rules there may be others.
func compareBase(c rules.Chain, want, got []SavedRule, say func(rules.Chain, string, ...any)) {
	same := true
	for _, r := range want {
		if n := count(got, r); n != 1 {
			say(c, "%s has %s %d times, not once", c.Name, r.Line, n)
			same = false
		}
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
