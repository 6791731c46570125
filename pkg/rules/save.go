package rules

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
)

// Restore prints the ruleset of one family as input for iptables-restore --noflush: it makes the chains, or empties
// them if they are there, and fills them. delete are rules to remove in the same transaction, each as "-A CHAIN ..." of
// iptables-save. With explain, a comment ahead of each rule says why it is there.
func (rs Ruleset) Restore(f Family, explain bool, delete []SavedRule) string {
	rs = rs.For(f)
	var b strings.Builder
	for _, t := range rs.tables() {
		fmt.Fprintf(&b, "*%s\n", t)
		for _, c := range rs.Chains {
			if c.Table == t {
				fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
			}
		}
		for _, d := range delete {
			if d.Chain.Table == t {
				fmt.Fprintln(&b, d.deletion())
			}
		}
		for _, r := range rs.Rules {
			if r.Chain.Table != t {
				continue
			}
			if explain {
				fmt.Fprintf(&b, "# %s\n", r.Why)
			}
			fmt.Fprintln(&b, r)
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

func (rs Ruleset) tables() []Table {
	var out []Table
	for _, c := range rs.Chains {
		if !slices.Contains(out, c.Table) {
			out = append(out, c.Table)
		}
	}
	return out
}

// Save is what iptables-save or Restore printed: the chains that are not built in, and every rule as its line.
type Save struct {
	Chains []Chain
	Rules  []SavedRule
}

// SavedRule is one rule as iptables-save prints it, "-A CHAIN ...".
type SavedRule struct {
	Chain Chain
	Line  string
}

func (r SavedRule) deletion() string { return "-D" + strings.TrimPrefix(r.Line, "-A") }

// ParseSave reads what iptables-save or Restore printed. It is an error if the text ends before COMMIT or a line is of
// no known form; rules are taken as they are.
func ParseSave(text string) (Save, error) {
	var s Save
	var table Table
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || line[0] == '#':
		case line[0] == '*' && table == "":
			table = Table(line[1:])
		case line == "COMMIT" && table != "":
			table = ""
		case line[0] == ':' && table != "" && len(words) > 1:
			if words[1] == "-" {
				s.Chains = append(s.Chains, Chain{table, words[0][1:]})
			}
		case words[0] == "-A" && table != "" && len(words) > 1:
			s.Rules = append(s.Rules, SavedRule{Chain{table, words[1]}, line})
		default:
			return Save{}, fmt.Errorf("parse iptables-save: line %d: %q is not expected here", n, line)
		}
	}
	if table != "" {
		return Save{}, fmt.Errorf("parse iptables-save: table %s has no COMMIT", table)
	}
	return s, nil
}

// In returns the rules of a chain, in order.
func (s Save) In(c Chain) []SavedRule {
	var out []SavedRule
	for _, r := range s.Rules {
		if r.Chain == c {
			out = append(out, r)
		}
	}
	return out
}

// JumpsInto returns the rules outside of chains that jump into one of them, as ours and anybody's base chains do.
func (s Save) JumpsInto(chains []Chain) []SavedRule {
	var out []SavedRule
	for _, r := range s.Rules {
		into := Chain{r.Chain.Table, jumpTarget(r.Line)}
		if slices.Contains(chains, into) && !slices.Contains(chains, r.Chain) {
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

// Removal prints input for iptables-restore --noflush that takes out those of chains which s has, and every jump into
// them; "" if there is nothing to take out.
func (s Save) Removal(chains []Chain) string {
	chains = slices.DeleteFunc(slices.Clone(chains), func(c Chain) bool { return !slices.Contains(s.Chains, c) })
	var b strings.Builder
	for _, t := range (Ruleset{Chains: chains}).tables() {
		fmt.Fprintf(&b, "*%s\n", t)
		for _, r := range s.JumpsInto(chains) {
			if r.Chain.Table == t {
				fmt.Fprintln(&b, r.deletion())
			}
		}
		for _, verb := range []string{"-F", "-X"} {
			for _, c := range chains {
				if c.Table == t {
					fmt.Fprintln(&b, verb, c.Name)
				}
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
