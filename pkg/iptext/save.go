package iptext

import (
	"bufio"
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Save is what iptables-save or Restore prints: the chains that are not built in, and every rule as its line.
type Save struct {
	Chains []rules.Chain
	Rules  []SavedRule
}

// SavedRule is one rule as iptables-save prints it, "-A CHAIN ...".
type SavedRule struct {
	Chain rules.Chain
	Line  string
}

// Canonical returns the line as Print prints it, whatever the version of iptables-save. A rule that a Ruleset has no types
// for stays as it is.
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

// Find returns what s has of own: own's chains, and, outside of them, own's base chain rules and every jump into own's
// chains.
func (s Save) Find(own Save) Save {
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
		if slices.Contains(own.Chains, r.jumpsTo()) || base[SavedRule{r.Chain, r.Canonical()}] {
			out.Rules = append(out.Rules, r)
		}
	}
	return out
}

// OnlyJumps reports whether all rules of s in base chains are jumps into chains of s.
func (s Save) OnlyJumps() bool {
	return !slices.ContainsFunc(s.Rules, func(r SavedRule) bool { return r.Chain.Base() && !slices.Contains(s.Chains, r.jumpsTo()) })
}

// Join returns what is in s or in other.
func (s Save) Join(other Save) Save {
	return Save{slices.Concat(s.Chains, other.Chains), slices.Concat(s.Rules, other.Rules)}
}

// ChainsIn returns the chains of a table: the base chains that s has rules in, then the chains of s.
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

// jumpsTo returns the chain of the rule's target, as if every target were a chain.
func (r SavedRule) jumpsTo() rules.Chain {
	words := strings.Fields(r.Line)
	for i := len(words) - 2; i > 0; i-- {
		if words[i] == "-j" || words[i] == "-g" {
			return rules.Chain{Table: r.Chain.Table, Name: words[i+1]}
		}
	}
	return rules.Chain{}
}

// ParseSave reads what iptables-save or Restore printed. It is an error if the text ends before COMMIT or a line has no known
// form; rules are not parsed.
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
