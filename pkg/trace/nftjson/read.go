// Package nftjson reads what `nft -j list ruleset` prints (libnftables-json(5)) into the tables of package trace. It is pure.
//
// It reads the families ip, ip6, inet and netdev. Tables of the families bridge and arp are left out: a walk does not visit them.
//
// nft's JSON has less than the kernel. nft prints only the name of an xtables match or target: iptables' own tables are better
// read from iptables-save. nft 1.0.6 leaves out the devices of chains of hooks ingress and egress, which then see the packets
// of all devices here. It prints a table's flag wrongly, so a flag that is not known counts as dormant.
package nftjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/detour-cni/detour/pkg/trace"
)

const wanted = "get the right file with `nft -j list ruleset`"

// item is an element of the list "nftables". Only one of its fields is set; all are nil for what the walk does not need.
type item struct {
	Table *table
	Chain *chain
	Rule  *rule
	Set   *namedSet
	Map   *namedSet
}

type place struct{ Family, Table string }

type table struct {
	Family string
	Name   string
	Flags  words
}

type chain struct {
	place
	Name   string
	Hook   string
	Type   string
	Prio   int
	Policy string
	Dev    words
}

type rule struct {
	place
	Chain   string
	Handle  uint64
	Comment string
	Expr    json.RawMessage
}

type namedSet struct {
	place
	Name string
	Type json.RawMessage
	Map  json.RawMessage
	Elem json.RawMessage
}

// words is a string or a list of strings.
type words []string

func (w *words) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte{'['}) {
		return json.Unmarshal(data, (*[]string)(w))
	}
	var one string
	err := json.Unmarshal(data, &one)
	*w = words{one}
	return err
}

// Read reads the tables. It reads rules when a chain's Rules is called, and the elements of a set when a rule that uses it is read;
// a part that it does not know makes that part unknown. The error says what the data is instead of nft's JSON. Equal data yields equal
// tables.
func Read(data []byte) ([]*trace.Table, error) { return ReadOutline(data, nil) }

// ReadOutline is Read for a listing without rules. Those of a chain are what rules returns, a listing as well, when the chain's Rules
// is called. The error of rules is that of Rules.
func ReadOutline(data []byte, rules func(family, table, chain string) ([]byte, error)) ([]*trace.Table, error) {
	items, err := list(data)
	if err != nil {
		return nil, fmt.Errorf("read nft's JSON: %w", err)
	}
	r := reader{at: map[place]*ruleset{}, rules: rules}
	for _, one := range items {
		r.add(one)
	}
	for _, t := range r.tables {
		if managedByIptables(t) {
			t.Origin = "iptables-nft"
		}
	}
	return r.tables, nil
}

func list(data []byte) ([]item, error) {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return nil, errors.New("the file is empty: " + wanted)
	}
	if data[0] != '{' && data[0] != '[' {
		if looksLikeNft(data) {
			return nil, errors.New("this is nft's own language, not JSON: add -j, as in `nft -j list ruleset`")
		}
		return nil, errors.New("this is not JSON: " + wanted)
	}
	if list := elements(data); list != nil {
		return decodeItems(list)
	}
	return nil, wrong(data)
}

// elements returns the elements of the list "nftables"; nil if the data is no object that has one.
func elements(data []byte) [][]byte {
	if data[0] != '{' || skip(data, 0) != len(data) {
		return nil
	}
	for key, list := range fields(data) {
		if key == "nftables" && list[0] == '[' {
			return slices.AppendSeq([][]byte{}, parts(list))
		}
	}
	return nil
}

func decodeItems(list [][]byte) ([]item, error) {
	items := make([]item, len(list))
	for i, raw := range list {
		for key, value := range fields(raw) {
			if key == "rule" {
				items[i].Rule = scanRule(value)
			}
		}
		if items[i].Rule != nil {
			continue
		}
		if err := json.Unmarshal(raw, &items[i]); err != nil {
			return nil, fmt.Errorf("element %d is not as nft prints it (%w): %s", i+1, err, wanted)
		}
	}
	return items, nil
}

// wrong says what is wrong with the data.
func wrong(data []byte) error {
	var all struct{ Nftables json.RawMessage }
	err := json.Unmarshal(data, &all)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax) && skip(data, 0) < 0:
		return fmt.Errorf("the file is truncated after %d bytes: %s again", len(data), wanted)
	case errors.As(err, &syntax):
		return fmt.Errorf("byte %d is not JSON (%w): %s", syntax.Offset, err, wanted)
	case data[0] == '[':
		return errors.New("this is another program's JSON, a list: " + wanted)
	case all.Nftables == nil:
		return errors.New("this is another program's JSON, without \"nftables\": " + wanted)
	}
	return errors.New("\"nftables\" is no list: " + wanted)
}

func looksLikeNft(data []byte) bool {
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			return bytes.HasPrefix(line, []byte("table ")) && bytes.HasSuffix(line, []byte("{"))
		}
	}
	return false
}

// reader gathers what belongs together: nft lists a table's rules after its chains.
type reader struct {
	tables []*trace.Table
	at     map[place]*ruleset
	rules  func(family, table, chain string) ([]byte, error) // nil if the rules are in the listing
}

// ruleset is a table that is being read, and what its rules refer to.
type ruleset struct {
	*trace.Table
	rules map[string][]*rule
	later func(family, table, chain string) ([]byte, error)
	named map[string]*namedSet
	sets  map[string]*trace.Set
	mu    sync.Mutex // of sets
}

func (r *reader) add(one item) {
	switch {
	case one.Table != nil:
		r.addTable(one.Table)
	case one.Chain != nil:
		if t := r.at[one.Chain.place]; t != nil {
			t.addChain(one.Chain)
		}
	case one.Rule != nil:
		if t := r.at[one.Rule.place]; t != nil {
			t.rules[one.Rule.Chain] = append(t.rules[one.Rule.Chain], one.Rule)
		}
	case one.Set != nil:
		r.addSet(one.Set)
	case one.Map != nil:
		r.addSet(one.Map)
	}
}

func (r *reader) addSet(s *namedSet) {
	if t := r.at[s.place]; t != nil {
		t.named[s.Name] = s
	}
}

func (r *reader) addTable(t *table) {
	switch family := trace.Family(t.Family); family {
	case trace.IP, trace.IP6, trace.Inet, trace.Netdev:
		read := &trace.Table{Family: family, Name: t.Name, Origin: "nft"}
		for _, flag := range t.Flags {
			// nft 1.0.6 prints other bytes instead of a single flag. Its other flags came later.
			read.Dormant = read.Dormant || flag != "owner" && flag != "persist"
		}
		r.tables = append(r.tables, read)
		r.at[place{t.Family, t.Name}] = &ruleset{
			Table: read, rules: map[string][]*rule{}, later: r.rules, named: map[string]*namedSet{}, sets: map[string]*trace.Set{},
		}
	}
}

// addChain adds a base chain once for each of its devices.
func (t *ruleset) addChain(c *chain) {
	devices := c.Dev
	if len(devices) == 0 {
		devices = words{""}
	}
	for _, device := range devices {
		read := &trace.Chain{Table: t.Table, Name: c.Name}
		if c.Hook != "" {
			read.Base = &trace.Base{
				Hook: trace.Hook(c.Hook), Type: trace.ChainType(c.Type), Priority: c.Prio, Device: device,
				Policy: trace.Verdict{Kind: trace.Accept},
			}
			if c.Policy == "drop" {
				read.Base.Policy.Kind = trace.Drop
			}
		}
		read.Rules = sync.OnceValues(func() ([]*trace.Rule, error) { return t.read(read) })
		t.Chains = append(t.Chains, read)
	}
}

func (t *ruleset) read(c *trace.Chain) ([]*trace.Rule, error) {
	list, err := t.list(c.Name)
	rules := make([]*trace.Rule, 0, len(list))
	for i, raw := range list {
		rules = append(rules, t.readRule(c, i+1, raw))
	}
	return rules, err
}

func (t *ruleset) list(chain string) ([]*rule, error) {
	if t.later == nil {
		return t.rules[chain], nil
	}
	data, err := t.later(string(t.Family), t.Name, chain)
	if err != nil {
		return nil, err
	}
	items, err := list(data)
	var rules []*rule
	for _, one := range items {
		if one.Rule != nil {
			rules = append(rules, one.Rule)
		}
	}
	return rules, err
}

func (t *ruleset) readRule(c *trace.Chain, number int, raw *rule) *trace.Rule {
	rule := &trace.Rule{Chain: c, Number: number, Handle: raw.Handle, Comment: raw.Comment}
	statements, ok := decode(raw.Expr).([]any)
	if !ok {
		rule.Text = string(raw.Expr)
		rule.Statements = []trace.Statement{trace.UnknownEffect{Text: rule.Text, Reason: "it is not a list of statements"}}
		return rule
	}
	texts := make([]string, len(statements))
	for i, s := range statements {
		t.qualify(s)
		texts[i] = statementText(s, t.Family)
	}
	rule.Text = strings.Join(texts, " ")
	rule.Statements = t.statements(statements, texts)
	return rule
}

// qualify makes "ct original saddr" of a table of one family what nft prints, and what it is in tables of both: "ct original ip
// saddr".
func (t *ruleset) qualify(x any) {
	switch x := x.(type) {
	case []any:
		for _, one := range x {
			t.qualify(one)
		}
	case map[string]any:
		ct, _ := x["ct"].(map[string]any)
		if t.Family != trace.Inet && (ct["key"] == "saddr" || ct["key"] == "daddr") {
			ct["key"] = fmt.Sprintf("%s %s", t.Family, ct["key"])
		}
		for _, one := range x {
			t.qualify(one)
		}
	}
}

// decode returns nil for what is not JSON.
func decode(data []byte) any {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var x any
	if decoder.Decode(&x) != nil {
		return nil
	}
	return x
}

// hooksOfIptables are the base chains of iptables' tables.
var hooksOfIptables = map[trace.Hook]string{
	trace.Prerouting: "PREROUTING", trace.Input: "INPUT", trace.Forward: "FORWARD", trace.Output: "OUTPUT", trace.Postrouting: "POSTROUTING",
}

func managedByIptables(t *trace.Table) bool {
	if t.Family != trace.IP && t.Family != trace.IP6 {
		return false
	}
	switch t.Name {
	case "raw", "mangle", "nat", "filter", "security":
	default:
		return false
	}
	found := false
	for _, c := range t.Chains {
		if c.Base == nil {
			continue
		}
		if c.Name != hooksOfIptables[c.Base.Hook] {
			return false
		}
		found = true
	}
	return found
}
