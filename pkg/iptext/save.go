package iptext

import (
	"bufio"
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Save is what iptables-save or Restore printed, or would print: the chains that are not built in, and every rule as its
// line.
type Save struct {
	Chains []rules.Chain
	Rules  []SavedRule
}

// SavedRule is one rule as iptables-save prints it, "-A CHAIN ...".
type SavedRule struct {
	Chain rules.Chain
	Line  string
}

// Canonical irons out what differs between versions of iptables-save; a rule that the Ruleset has no types for stays as
// it is.
func (r SavedRule) Canonical() string {
	parsed, err := ParseRule(r.Chain.Table, r.Line)
	if err != nil {
		return r.Line
	}
	return Print(parsed)
}

// SaveOf returns the ruleset of one family as iptables-save would list it.
func SaveOf(rs rules.Ruleset, f rules.Family) Save {
	s := Save{Chains: rs.Chains}
	for _, r := range For(rs, f).Rules {
		s.Rules = append(s.Rules, SavedRule{r.Chain, Print(r)})
	}
	return s
}

// Restore prints the ruleset of one family as input for iptables-restore --noflush: it makes the chains, or empties
// them if they are there, and fills them. With explain, a comment ahead of each rule says why it is there.
func Restore(rs rules.Ruleset, f rules.Family, explain bool) string {
	s := SaveOf(rs, f)
	if explain {
		for i, r := range For(rs, f).Rules {
			s.Rules[i].Line = "# " + r.Why + "\n" + s.Rules[i].Line
		}
	}
	return s.Restore(Save{})
}

// Restore prints s as input for iptables-restore --noflush. stale is taken out in the same transactions, one a table.
func (s Save) Restore(stale Save) string {
	var b strings.Builder
	for _, t := range rules.Tables {
		if part := s.table(t, stale); part != "" {
			fmt.Fprintf(&b, "*%s\n%sCOMMIT\n", t, part)
		}
	}
	return b.String()
}

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

// remove prints what takes s out of a table, but for chains that are made anew.
func (s Save) remove(b *strings.Builder, t rules.Table, anew []rules.Chain) {
	for _, r := range s.Rules {
		if r.Chain.Table == t {
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

// Owned returns what of s belongs to own: its chains, and of the rules in other chains those that jump into its chains
// or are its own.
func (s Save) Owned(own Save) Save {
	var out Save
	for _, c := range s.Chains {
		if slices.Contains(own.Chains, c) {
			out.Chains = append(out.Chains, c)
		}
	}
	base := map[SavedRule]bool{}
	for _, r := range own.Rules {
		if r.Chain.Base() {
			base[SavedRule{r.Chain, r.Canonical()}] = true
		}
	}
	for _, r := range s.Rules {
		if slices.Contains(own.Chains, r.Chain) {
			continue
		}
		into := rules.Chain{Table: r.Chain.Table, Name: jumpTarget(r.Line)}
		if slices.Contains(own.Chains, into) || base[SavedRule{r.Chain, r.Canonical()}] {
			out.Rules = append(out.Rules, r)
		}
	}
	return out
}

// OnlyJumps reports whether all that s has in base chains is jumps into its own chains.
func (s Save) OnlyJumps() bool {
	return !slices.ContainsFunc(s.Rules, func(r SavedRule) bool {
		return r.Chain.Base() && !slices.Contains(s.Chains, rules.Chain{Table: r.Chain.Table, Name: jumpTarget(r.Line)})
	})
}

// Join returns what is in s or in other.
func (s Save) Join(other Save) Save {
	return Save{slices.Concat(s.Chains, other.Chains), slices.Concat(s.Rules, other.Rules)}
}

// ChainsIn returns the chains of a table that s has or has rules in, base chains first.
func (s Save) ChainsIn(t rules.Table) []rules.Chain {
	var out []rules.Chain
	for _, r := range s.Rules {
		if r.Chain.Table == t && r.Chain.Base() && !slices.Contains(out, r.Chain) {
			out = append(out, r.Chain)
		}
	}
	for _, c := range s.Chains {
		if c.Table == t {
			out = append(out, c)
		}
	}
	return out
}

// In returns the rules of a chain, in order.
func (s Save) In(c rules.Chain) []SavedRule {
	var out []SavedRule
	for _, r := range s.Rules {
		if r.Chain == c {
			out = append(out, r)
		}
	}
	return out
}

func jumpTarget(line string) string {
	words := strings.Fields(line)
	for i := len(words) - 2; i > 0; i-- {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}

// ParseSave reads what iptables-save or Restore printed. It is an error if the text ends before COMMIT or a line is of
// no known form; rules are taken as they are.
func ParseSave(text string) (Save, error) {
	var s Save
	var table rules.Table
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || line[0] == '#':
		case line[0] == '*' && table == "":
			table = rules.Table(line[1:])
		case line == "COMMIT" && table != "":
			table = ""
		case line[0] == ':' && table != "" && len(words) > 1:
			if words[1] == "-" {
				s.Chains = append(s.Chains, rules.Chain{Table: table, Name: words[0][1:]})
			}
		case words[0] == "-A" && table != "" && len(words) > 1:
			s.Rules = append(s.Rules, SavedRule{rules.Chain{Table: table, Name: words[1]}, line})
		default:
			return Save{}, fmt.Errorf("parse iptables-save: line %d: %q is not expected here", n, line)
		}
	}
	if table != "" {
		return Save{}, fmt.Errorf("parse iptables-save: table %s has no COMMIT", table)
	}
	return s, nil
}
