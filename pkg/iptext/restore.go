package iptext

import (
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Restore prints the ruleset of one family as input for iptables-restore --noflush: it creates the chains, or empties those
// that exist, and fills them. With explain, a comment ahead of each rule says why it is there.
func Restore(rs rules.Ruleset, f rules.Family, explain bool) string {
	s := SaveOf(rs, f)
	if explain {
		for i, r := range For(rs, f).Rules {
			s.Rules[i].Line = "# " + r.Why + "\n" + s.Rules[i].Line
		}
	}
	return s.Restore(Save{})
}

// Restore prints s as input for iptables-restore --noflush. The same transactions, one per table, remove stale.
func (s Save) Restore(stale Save) string {
	var b strings.Builder
	for _, t := range rules.Tables {
		if part := s.table(t, stale); part != "" {
			fmt.Fprintf(&b, "*%s\n%sCOMMIT\n", t, part)
		}
	}
	return b.String()
}

// Removal prints input for iptables-restore --noflush that removes s. It fails, and removes nothing of a table, if anything
// of s is missing.
func (s Save) Removal() string { return Save{}.Restore(s) }

func (s Save) table(t rules.Table, stale Save) string {
	var b strings.Builder
	for _, c := range s.Chains {
		if c.Table == t {
			fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
		}
	}
	stale.remove(&b, t, s.Chains)
	for _, r := range s.Rules {
		if r.Chain.Table == t {
			fmt.Fprintln(&b, r.Line)
		}
	}
	return b.String()
}

// remove prints the lines that remove s from a table, except for the chains in anew, which are created again. The rules in
// chains of s go with the chains.
func (s Save) remove(b *strings.Builder, t rules.Table, anew []rules.Chain) {
	for _, r := range s.Rules {
		if r.Chain.Table == t && !slices.Contains(s.Chains, r.Chain) {
			fmt.Fprintln(b, "-D"+strings.TrimPrefix(r.Line, "-A"))
		}
	}
	for _, verb := range []string{"-F", "-X"} {
		for _, c := range s.Chains {
			if c.Table == t && !slices.Contains(anew, c) {
				fmt.Fprintln(b, verb, c.Name)
			}
		}
	}
}
