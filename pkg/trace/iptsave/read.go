// Package iptsave reads what iptables-save, ip6tables-save and their variants print, with or without counters, into the tables that
// package trace walks. It is pure.
//
// A match or a target that it doesn't know becomes one that the walk does not know either: whole rules are never left out. Package
// snapshot/xtables, which prints the kernel's rules as iptables-save does, marks what it can't decode with "-m NAME [unknown]" and
// "-j NAME [unknown]".
package iptsave

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/detour-cni/detour/pkg/trace"
)

// Origins by the program that printed the text.
const (
	NFT     = "iptables-nft"
	Legacy  = "iptables-legacy"
	Unnamed = "iptables"
)

// Read reads one program's output for one family, trace.IP for iptables-save and trace.IP6 for ip6tables-save. An ipset that sets lacks is
// one whose elements are not known.
func Read(data []byte, family trace.Family, origin string, sets map[string]*IPSet) ([]*trace.Table, error) {
	if err := check(data); err != nil {
		return nil, err
	}
	f := file{family: family, origin: origin, sets: sets}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		if err := f.line(strings.TrimSpace(line)); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	if f.table != nil {
		return nil, fmt.Errorf("table %s has no COMMIT: the output of %s is cut off, so save it again", f.table.Name, f.program())
	}
	return f.tables, nil
}

// check refuses what is something else.
func check(data []byte) error {
	text := bytes.TrimSpace(data)
	switch {
	case !utf8.Valid(data):
		return errors.New("this is not text: save the output of iptables-save")
	case bytes.HasPrefix(text, []byte("{")):
		return errors.New("this is JSON, not the output of iptables-save: is it for --nft, --route or --addr?")
	case bytes.HasPrefix(text, []byte("table ")):
		return errors.New("this is the output of nft: save that of `nft -j list ruleset` for --nft")
	case bytes.HasPrefix(text, []byte("Chain ")):
		return errors.New("this is the output of iptables -L, which leaves out half of each rule: save that of iptables-save")
	}
	return nil
}

// file is a file that is being read.
type file struct {
	family trace.Family
	origin string
	sets   map[string]*IPSet
	tables []*trace.Table
	table  *trace.Table
	lines  map[string]*[]string // the rules of each chain of the table
}

func (f *file) program() string {
	if f.family == trace.IP6 {
		return "ip6tables-save"
	}
	return "iptables-save"
}

func (f *file) line(line string) error {
	switch {
	case line == "" || line[0] == '#':
		return nil
	case line[0] == '*':
		return f.begin(line[1:])
	case f.table == nil:
		return fmt.Errorf("%q is in no table: this is not the output of %s", shorten(line), f.program())
	case line == "COMMIT":
		f.table, f.lines = nil, nil
		return nil
	case line[0] == ':':
		return f.declare(line[1:])
	case line[0] == '[':
		_, rule, ok := strings.Cut(line, "] ")
		if !ok {
			return fmt.Errorf("%q has no rule behind its counters", shorten(line))
		}
		return f.rule(rule)
	}
	return f.rule(line)
}

// shorten keeps a line that is no line of iptables-save from filling the screen.
func shorten(line string) string {
	const most = 60
	if runes := []rune(line); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return line
}

func (f *file) begin(name string) error {
	if f.table != nil {
		return fmt.Errorf("table %s begins before table %s has its COMMIT", name, f.table.Name)
	}
	if _, ok := priorities[name]; !ok {
		return fmt.Errorf("iptables has no table %q", shorten(name))
	}
	f.table, f.lines = &trace.Table{Family: f.family, Name: name, Origin: f.origin}, map[string]*[]string{}
	f.tables = append(f.tables, f.table)
	return nil
}

func (f *file) declare(line string) error {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return fmt.Errorf("chain %q has no policy", shorten(line))
	}
	if f.lines[fields[0]] != nil {
		return fmt.Errorf("table %s has chain %s twice", f.table.Name, fields[0])
	}
	policy := trace.Verdict{Kind: trace.Accept}
	if fields[1] == "DROP" {
		policy.Kind = trace.Drop
	}
	f.chain(fields[0], policy)
	return nil
}

// chain adds a chain to the table.
func (f *file) chain(name string, policy trace.Verdict) *[]string {
	c := &trace.Chain{Table: f.table, Name: name, Base: f.base(name, policy)}
	lines := &[]string{}
	c.Rules = sync.OnceValues(func() ([]*trace.Rule, error) { return f.rules(c, *lines), nil })
	f.table.Chains = append(f.table.Chains, c)
	f.lines[name] = lines
	return lines
}

func (f *file) rule(line string) error {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return fmt.Errorf("%q is no line of %s", shorten(line), f.program())
	}
	name, rule, _ := strings.Cut(rest, " ")
	lines := f.lines[name]
	if lines == nil { // text for iptables-restore --noflush need not declare the built-in chains
		if f.base(name, trace.Verdict{}) == nil {
			return fmt.Errorf("table %s has a rule for chain %s, but no line for the chain itself", f.table.Name, shorten(name))
		}
		lines = f.chain(name, trace.Verdict{Kind: trace.Accept})
	}
	*lines = append(*lines, rule)
	return nil
}

func (f *file) rules(c *trace.Chain, lines []string) []*trace.Rule {
	rules := make([]*trace.Rule, len(lines))
	for i, line := range lines {
		rules[i] = f.parse(c, line)
		rules[i].Number = i + 1
	}
	return rules
}

// hooks are iptables' built-in chains.
var hooks = map[string]trace.Hook{
	"PREROUTING": trace.Prerouting, "INPUT": trace.Input, "FORWARD": trace.Forward, "OUTPUT": trace.Output, "POSTROUTING": trace.Postrouting,
}

// priorities are those of iptables' tables in each of their hooks.
var priorities = map[string]map[trace.Hook]int{
	"raw":      {trace.Prerouting: trace.PriorityRaw, trace.Output: trace.PriorityRaw},
	"mangle":   all(trace.PriorityMangle, trace.Prerouting, trace.Input, trace.Forward, trace.Output, trace.Postrouting),
	"nat":      {trace.Prerouting: trace.PriorityDNAT, trace.Input: trace.PrioritySNAT, trace.Output: trace.PriorityDNAT, trace.Postrouting: trace.PrioritySNAT},
	"filter":   all(trace.PriorityFilter, trace.Input, trace.Forward, trace.Output),
	"security": all(trace.PrioritySecurity, trace.Input, trace.Forward, trace.Output),
}

func all(priority int, hooks ...trace.Hook) map[trace.Hook]int {
	m := map[trace.Hook]int{}
	for _, h := range hooks {
		m[h] = priority
	}
	return m
}

// securityOfNFT is the priority of iptables-nft's table security, which INPUT of its table nat precedes. The kernel's own is 50.
const securityOfNFT = 150

// base returns nil if the table has no built-in chain of that name.
func (f *file) base(chain string, policy trace.Verdict) *trace.Base {
	table := f.table.Name
	hook, ok := hooks[chain]
	if !ok {
		return nil
	}
	priority, ok := priorities[table][hook]
	if !ok {
		return nil
	}
	if table == "security" && f.origin == NFT {
		priority = securityOfNFT
	}
	kind := trace.FilterChain
	switch {
	case table == "nat":
		kind = trace.NATChain
	case table == "mangle" && hook == trace.Output:
		kind = trace.RouteChain
	}
	return &trace.Base{Hook: hook, Type: kind, Priority: priority, Policy: policy}
}
