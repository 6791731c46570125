// Package verify compares what the kernel has with what was programmed.
package verify

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Differences returns what is wrong with got, the kernel's rules of one family, against want, the rules as they were
// programmed: a chain that is missing, a rule of one of want's chains that is missing, altered or added, and a jump
// into one of them that is missing or there more than once. Rules and chains of others are nobody's business here. The
// order is that of want; nothing means that both agree.
func Differences(f rules.Family, want, got rules.Save) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, f.String()+" "+fmt.Sprintf(format, args...)) }

	for _, c := range want.Chains {
		if !slices.Contains(got.Chains, c) {
			say("%s: chain %s is missing", c.Table, c.Name)
			continue
		}
		compareChain(c, want.In(c), got.In(c), say)
	}
	compareJumps(want.JumpsInto(want.Chains), got.JumpsInto(want.Chains), say)
	return out
}

func compareChain(c rules.Chain, want, got []rules.SavedRule, say func(string, ...any)) {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			say("%s: rule %d of %s is missing: %s", c.Table, i+1, c.Name, want[i].Line)
		case i >= len(want):
			say("%s: rule %d of %s is not detour's: %s", c.Table, i+1, c.Name, got[i].Line)
		case canonical(want[i]) != canonical(got[i]):
			say("%s: rule %d of %s is %s, not %s", c.Table, i+1, c.Name, got[i].Line, want[i].Line)
		}
	}
}

func compareJumps(want, got []rules.SavedRule, say func(string, ...any)) {
	count := map[string]int{}
	for _, r := range got {
		count[canonical(r)]++
	}
	for _, r := range want {
		if n := count[canonical(r)]; n != 1 {
			say("%s: %s has %s %d times, not once", r.Chain.Table, r.Chain.Name, r.Line, n)
		}
		delete(count, canonical(r))
	}
	for _, r := range got {
		if count[canonical(r)] > 0 {
			say("%s: %s has %s, which is not detour's", r.Chain.Table, r.Chain.Name, r.Line)
		}
	}
}

// canonical irons out what differs between versions of iptables-save; a rule that detour has no types for stays as it is.
func canonical(r rules.SavedRule) string {
	parsed, err := rules.ParseRule(r.Chain.Table, r.Line)
	if err != nil {
		return r.Line
	}
	return parsed.String()
}
