package trace_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// The environment says how many pairs of a ruleset and a packet to hold against the kernel, and with which seed to begin; 0 is a random
// one.
const (
	pairsVar = "DETOUR_TRACE_PAIRS"
	seedVar  = "DETOUR_TRACE_SEED"
)

func number(t *testing.T, name string, otherwise uint64) uint64 {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// samplePairs are enough for a bug to show, as a rule.
const samplePairs = 600

// perRuleset is how many packets go through one ruleset.
const perRuleset = 20

// kinds are who programs the rules.
var kinds = []string{"nft", "iptables-nft", "iptables-legacy"}

// The kernel is the judge: a random packet meets the rules of a random ruleset that the tracer says, in order, and ends as it says.
func TestTheKernelAgreesWithTheTracer(t *testing.T) {
	pairs := number(t, pairsVar, samplePairs)
	seed := number(t, seedVar, 1)
	if seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("%s=%d %s=%d", pairsVar, pairs, seedVar, seed)
	pin(t)
	worlds, ends := map[string]*world{}, map[string]int{}
	defer func() { t.Logf("%d pairs ended so: %v", pairs, ends) }()
	failures := 0
	for i := uint64(0); i*perRuleset < pairs; i++ {
		kind := kinds[(seed+i)%uint64(len(kinds))]
		if worlds[kind] == nil {
			worlds[kind] = newWorld(t)
		}
		r := &ruleset{world: worlds[kind], kind: kind, ends: ends, seed: seed + i, dice: dice{rand.New(rand.NewPCG(seed+i, 0))}}
		difference := r.judge(min(perRuleset, pairs-i*perRuleset))
		if difference == "" {
			continue
		}
		t.Errorf("%s=%d %s=%d, %s: %s", seedVar, seed+i, pairsVar, perRuleset, kind, difference)
		if failures++; failures == maxFailures {
			t.Fatal("that is enough")
		}
	}
}

const maxFailures = 3

// ruleset is a random ruleset in the kernel, as both sides see it.
type ruleset struct {
	*world
	dice
	kind    string
	seed    uint64
	ends    map[string]int // how many packets ended how
	v6      bool           // of iptables
	text    string
	tables  []*trace.Table
	numbers numbers
}

// judge holds packets against the kernel and returns the first difference.
func (r *ruleset) judge(packets uint64) string {
	r.v6 = r.oneIn(2)
	r.load()
	defer r.unload()
	for range packets {
		v6 := r.v6
		if r.kind == "nft" {
			v6 = r.oneIn(2)
		}
		p := r.packet(v6, r.port())
		way, s, difference := r.hold(p)
		if difference == "" && r.oneIn(3) {
			difference = r.holdLater(p, way, s)
		}
		if difference != "" {
			return difference + "\n" + numbered(r.text)
		}
	}
	return ""
}

// tool is one of the programs of iptables for the ruleset's family.
func (r *ruleset) tool(suffix string) string {
	if r.v6 {
		return "ip6" + strings.TrimPrefix(r.kind, "ip") + suffix
	}
	return r.kind + suffix
}

// program makes a ruleset and programs it. It returns false if nft takes two of its matches for a contradiction.
func (r *ruleset) program() bool {
	r.t.Helper()
	program, args := "nft", []string{"-f", "-"}
	if r.kind == "nft" {
		r.text = r.nftables()
	} else {
		r.text = r.iptables(r.v6)
		program, args = r.tool("-restore"), nil
	}
	out, err := r.try(program, r.text, args...)
	if err != nil && !strings.Contains(out, "conflicting protocols") {
		r.t.Fatalf("%s=%d: %s: %v: %s\n%s", seedVar, r.seed, program, err, out, numbered(r.text))
	}
	return err == nil
}

// load makes the ruleset, programs it, and reads it back.
func (r *ruleset) load() {
	r.t.Helper()
	r.do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	for !r.program() {
	}
	r.read()
	r.numbers = numbersOf(r.run("nft -a list ruleset"))
}

// read reads the ruleset as the programs list it.
func (r *ruleset) read() {
	r.t.Helper()
	var err error
	if r.kind == "nft" {
		r.tables, err = r.nftTables()
	} else {
		r.tables, err = iptsave.Read([]byte(r.run(r.tool("-save"))), family(r.v6), r.kind, nil)
	}
	if err != nil {
		r.t.Fatalf("%s=%d: %v\n%s", seedVar, r.seed, err, numbered(r.text))
	}
}

func family(v6 bool) trace.Family {
	if v6 {
		return trace.IP6
	}
	return trace.IP
}

// unload empties legacy tables and deletes the others.
func (r *ruleset) unload() {
	r.t.Helper()
	if r.kind == "iptables-legacy" {
		if out, err := r.try(r.tool("-restore"), emptyIPTables()); err != nil {
			r.t.Fatalf("%v: %s", err, out)
		}
		return
	}
	for _, table := range r.own() {
		r.run("nft delete " + table)
	}
}

// own are the ruleset's tables: "table ip t0".
func (r *ruleset) own() (all []string) {
	for line := range strings.Lines(r.run("nft list tables")) {
		if name := strings.Fields(line)[2]; name != judgeTable && name != r.trace.Table() {
			all = append(all, strings.TrimSpace(line))
		}
	}
	return all
}

// nftTables reads the tables one by one: nft 1.0.6 fails to print as JSON a table that belongs to a process, as nftrace's does.
func (r *ruleset) nftTables() (all []*trace.Table, err error) {
	for _, table := range r.own() {
		one, err := nftjson.Read([]byte(r.run("nft -j list " + table)))
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
	}
	return all, nil
}

// hold sends a packet and finds the tracer's way that the kernel went, or says what differs.
func (r *ruleset) hold(p probe) (trace.Way, seen, string) {
	r.t.Helper()
	if strings.Contains(r.text, "@d0 {") { // the packets before may have changed the set
		r.read()
	}
	before := r.counters()
	s := r.watch(p)
	s.connection = r.connection(p)
	if r.kind == "iptables-legacy" {
		s.counts = r.counters()
		for at, n := range before {
			if s.counts[at] -= n; s.counts[at] == 0 {
				delete(s.counts, at)
			}
		}
	}
	way, difference := r.compare(p, s)
	return way, s, difference
}

func (r *ruleset) compare(p probe, s seen) (trace.Way, string) {
	result, err := trace.Walk(&trace.Namespace{Tables: r.tables, Routing: r.routing}, p.Packet)
	if err != nil {
		return trace.Way{}, err.Error()
	}
	hits := r.numbers.hits(s.events)
	why := ""
	for _, way := range every(result.Ways) {
		steps := stepsOf(way)
		switch {
		case r.kind == "iptables-legacy" && !sameCounts(steps, s.counts), r.kind != "iptables-legacy" && !sameSteps(steps, hits):
			why = "other rules"
		default:
			if why = sameEnd(way, p, s); why == "" {
				r.ends[string(way.Verdict)]++
				return way, ""
			}
		}
	}
	if r.kind == "iptables-legacy" {
		hits = sorted(s.counts)
	}
	var says strings.Builder
	for _, way := range result.Ways[:min(len(result.Ways), 8)] {
		says.WriteString(describe(way))
		for _, o := range way.Outcomes {
			says.WriteString("  outcome " + describe(o))
		}
	}
	return trace.Way{}, fmt.Sprintf("%s\n%s\nthe kernel: %s\n%s%sthe tracer: %s", why, p, s, r.textOf(hits), s.connection, &says)
}

// holdLater sends the answer to a packet, and then a later one of its connection, if the connection is there and not translated.
func (r *ruleset) holdLater(p probe, way trace.Way, s seen) string {
	r.t.Helper()
	f := way.Packet
	if s.at == "" || s.connection == "" || f.DNAT || f.SNAT || way.Verdict == trace.TProxied || p.State != 0 || !p.first() {
		return ""
	}
	if strings.Contains(r.text, "zone") { // chance may lead the answer into another one
		return ""
	}
	masqueraded := func(s trace.Step) bool {
		return s.Rule != nil && strings.Contains(strings.ToLower(s.Rule.Text), "masquerade")
	}
	if slices.ContainsFunc(way.Steps, masqueraded) { // the kernel ends such a connection once its packets leave elsewhere
		return ""
	}
	r.watch(p.answer(s))
	connection := r.connection(p)
	mark := connectionMark.FindStringSubmatch(connection)
	if mark == nil || strings.Contains(connection, "[UNREPLIED]") {
		return "" // a rule has dropped the answer ahead of connection tracking
	}
	n, _ := strconv.ParseUint(mark[1], 10, 32)
	p = p.later()
	p.CTMark = uint32(n)
	r.ends["later packet"]++
	if _, _, difference := r.hold(p); difference != "" {
		return "a later packet: " + difference
	}
	return ""
}

var connectionMark = regexp.MustCompile(` mark=(\d+) `)

// counters are those of legacy rules and policies.
func (r *ruleset) counters() map[place]int {
	if r.kind != "iptables-legacy" {
		return nil
	}
	counts, numbers, table := map[place]int{}, map[string]int{}, ""
	for line := range strings.Lines(r.run(r.tool("-save") + " -c")) {
		words := strings.Fields(line)
		at := place{family: string(family(r.v6)), table: table}
		var counter string
		switch line[0] {
		case '*':
			table = strings.TrimSpace(line[1:])
			clear(numbers)
			continue
		case ':':
			at.chain, counter = words[0][1:], words[2]
		case '[':
			at.chain, counter = words[2], words[0]
			numbers[at.chain]++
			at.number = numbers[at.chain]
		default:
			continue
		}
		counts[at], _ = strconv.Atoi(strings.Split(counter[1:], ":")[0])
	}
	return counts
}

func numbered(text string) string {
	var b strings.Builder
	for i, line := range strings.Split(text, "\n") {
		fmt.Fprintf(&b, "%3d %s\n", i+1, line)
	}
	return b.String()
}

func emptyIPTables() string {
	var b strings.Builder
	for _, t := range iptablesHooks {
		b.WriteString("*" + t.table + "\n")
		for _, h := range t.hooks {
			b.WriteString(":" + h + " ACCEPT [0:0]\n")
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// textOf are rules and policies with their text.
func (r *ruleset) textOf(places []place) string {
	var b strings.Builder
	for _, p := range places {
		fmt.Fprintf(&b, "    %s: %s\n", p, r.ruleText(p))
	}
	return b.String()
}

func (r *ruleset) ruleText(p place) string {
	for _, t := range r.tables {
		c := t.Chain(p.chain)
		if string(t.Family) != p.family || t.Name != p.table || c == nil {
			continue
		}
		if rules, err := c.Rules(); err == nil && p.number > 0 && p.number <= len(rules) {
			return rules[p.number-1].Text
		}
	}
	return ""
}
