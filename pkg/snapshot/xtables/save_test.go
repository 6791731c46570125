package xtables

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// forAll runs a test for each family and variant, in a namespace of its own with what rules may refer to.
func forAll(t *testing.T, test func(t *testing.T, ns *nettest.Namespace, f rules.Family, variant string)) {
	nettest.RequireNetns(t)
	for _, f := range rules.Families {
		for _, variant := range variants {
			t.Run(program(f, variant, ""), func(t *testing.T) {
				t.Parallel()
				ns := nettest.StartNamespace(t, "xtables")
				addReferences(t, ns, f)
				test(t, ns, f, variant)
			})
		}
	}
}

// addReferences makes the counters and sets of which matchWords and targetWords speak.
func addReferences(t *testing.T, ns *nettest.Namespace, f rules.Family) {
	t.Helper()
	addCounter(t, ns, "dropped")
	addCounter(t, ns, "ct_state_invalid_dropped_pkts")
	family := uint8(unix.NFPROTO_IPV4)
	if f == rules.IPv6 {
		family = unix.NFPROTO_IPV6
	}
	err := ns.Do(func() error {
		for name, kind := range map[string]string{"SET": "hash:ip", "TIMED": "hash:ip", "PORTS": "hash:ip,port"} {
			options := netlink.IpsetCreateOptions{Family: family, Counters: name == "SET"}
			if name == "TIMED" {
				options.Timeout = new(uint32(600))
			}
			if err := netlink.IpsetCreate(name, kind, options); err != nil {
				return fmt.Errorf("create set %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryCaseIsReadAsIptablesSaves(t *testing.T) {
	testcase.InKernel(t, "../../..", "want.iptables", func(t *testing.T, _ testcase.Case, d decision.Decision) {
		ns := nettest.StartNamespace(t, "case")
		for f, own := range iptables.Compile(d.Policy.Ruleset(), d.Families) {
			for _, variant := range variants {
				mustRun(t, ns, own.Restore(iptext.Save{}), program(f, variant, "-restore"), "--noflush")
				equal(t, ns, f, variant)
			}
		}
	})
}

// The tables of real nodes, which testdata has as text.
func TestNodesTablesAreReadAsIptablesSaves(t *testing.T) {
	nettest.RequireNetns(t)
	guides, err := filepath.Glob("../../../testdata/guides/*/*.iptables-save")
	if err != nil || len(guides) == 0 {
		t.Fatalf("no tables in testdata: %v", err)
	}
	for _, path := range append(guides, "../../../testdata/e2e/docker.iptables-save") {
		for _, variant := range variants {
			t.Run(filepath.Base(path)+" "+variant, func(t *testing.T) {
				t.Parallel()
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				ns := nettest.StartNamespace(t, "node")
				mustRun(t, ns, string(data), program(rules.IPv4, variant, "-restore"))
				equal(t, ns, rules.IPv4, variant)
			})
		}
	}
}

// ruleset is input for iptables-restore --counters.
type ruleset map[string][]string // the rules of each table

func (r ruleset) add(chain, rule string) {
	table, chain, _ := strings.Cut(chain, " ")
	r[table] = append(r[table], fmt.Sprintf("[%d:%d] -A %s %s", len(rule), 1000*len(rule), chain, rule))
}

func (r ruleset) String() string {
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(r)) {
		fmt.Fprintf(&b, "*%s\n:zebra - [0:0]\n:Zebra - [0:0]\n:ant - [0:0]\n%s\nCOMMIT\n", table, strings.Join(r[table], "\n"))
	}
	return b.String()
}

// chainOf is where a match or target may stand.
func (w words) chainOf() string {
	if w.chain == "" {
		return "filter INPUT"
	}
	return w.chain
}

// join puts words that there are into a line.
func join(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")
}

func TestEveryMatchAndTargetIsReadAsIptablesSaves(t *testing.T) {
	forAll(t, func(t *testing.T, ns *nettest.Namespace, f rules.Family, variant string) {
		all := ruleset{}
		for name, w := range matchWords {
			for _, options := range w.of(f) {
				all.add(w.chainOf(), join(w.ahead, "-m "+name, options, "-j ACCEPT"))
			}
		}
		for name, w := range targetWords {
			for _, options := range w.of(f) {
				all.add(w.chainOf(), join(w.ahead, "-j "+name, options))
			}
		}
		for _, head := range headWords.of(f) {
			all.add("filter INPUT", join(head, "-j ACCEPT"))
		}
		for _, rule := range []string{"", "-j ACCEPT", "-j DROP", "-j RETURN", "-j ant", "-g zebra", "-i lo -g Zebra"} {
			all.add("filter FORWARD", rule)
		}
		for _, rule := range []string{"-j ant", "-s ::1 -j RETURN", "-s 127.0.0.1 -j RETURN"} {
			if strings.Contains(rule, ".") == (f == rules.IPv4) || !strings.Contains(rule, "-s") {
				all.add("filter zebra", rule)
			}
		}
		mustRun(t, ns, all.String(), program(f, variant, "-restore"), "--counters")
		equal(t, ns, f, variant)
		if strings.Contains(save(t, ns, f).text(variant), placeholder) {
			t.Error("there is a match or target without words")
		}
	})
}

func TestEveryDecoderIsTested(t *testing.T) {
	for name := range matches {
		if _, ok := matchWords[name]; !ok {
			t.Errorf("no rule has match %s", name)
		}
	}
	for name := range targets {
		if _, ok := targetWords[name]; !ok {
			t.Errorf("no rule has target %s", name)
		}
	}
}

// inbound are matches that the kernel refuses in OUTPUT and POSTROUTING, some with some options only.
var inbound = []string{"addrtype", "mac", "physdev", "policy"}

// randomRule has up to three matches and a target, which can stand together in a chain.
func randomRule(r *rand.Rand, f rules.Family) (chain, rule string) {
	chain = pick(r, []string{"filter INPUT", "filter INPUT", "nat PREROUTING", "nat POSTROUTING", "mangle PREROUTING", "mangle POSTROUTING", "mangle OUTPUT", "raw PREROUTING"})
	in := strings.HasSuffix(chain, "INPUT") || strings.HasSuffix(chain, "PREROUTING")
	head, protocol := pick(r, headWords.of(f)), ""
	if strings.Contains(head, "-i ") && !in {
		head = ""
	}
	// fits adds the words if there can be any, and no others have another protocol.
	fits := func(w words, options *string) bool {
		all := w.of(f)
		if len(all) == 0 || w.ahead != "" && protocol != "" && protocol != w.ahead {
			return false
		}
		*options, protocol = pick(r, all), cmp.Or(w.ahead, protocol)
		return true
	}
	matches, options := map[string]string{}, ""
	for range r.IntN(4) {
		name := pick(r, slices.Sorted(maps.Keys(matchWords)))
		w := matchWords[name]
		if (w.chain == "" || w.chain == chain) && (in || !slices.Contains(inbound, name)) && fits(w, &options) {
			matches[name] = join("-m "+name, options)
		}
	}
	target := pick(r, []string{"-j ACCEPT", "-j ant", "-g zebra", "-j RETURN", ""})
	name := pick(r, slices.Sorted(maps.Keys(targetWords)))
	if w := targetWords[name]; w.chainOf() == chain && fits(w, &options) {
		target = join("-j "+name, options)
	}
	if protocol != "" && (strings.Contains(head, "-p ") || strings.Contains(head, "-f")) {
		head = ""
	}
	return chain, join(head, protocol, strings.Join(slices.Sorted(maps.Values(matches)), " "), target)
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func TestRandomRulesAreReadAsIptablesSaves(t *testing.T) {
	const seeds, count = 4, 250
	forAll(t, func(t *testing.T, ns *nettest.Namespace, f rules.Family, variant string) {
		for seed := range uint64(seeds) {
			r := rand.New(rand.NewPCG(seed, 0))
			all := ruleset{}
			for range count {
				all.add(randomRule(r, f))
			}
			mustRun(t, ns, all.String(), program(f, variant, "-restore"), "--counters")
			if !equal(t, ns, f, variant) {
				t.Fatalf("seed %d", seed)
			}
		}
	})
}
