package iptables

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Every scenario with rules, for real: what the kernel lists, where the packets end, that a second run changes nothing,
// and that removal leaves nothing.
func TestEveryCaseInTheKernel(t *testing.T) {
	testcase.InKernel(t, "../../..", "want.iptables", func(t *testing.T, c testcase.Case, d decision.Decision) {
		forBoth(t, func(t *testing.T, b *Programs) { checkCase(t, b, c, d) })
	})
}

func checkCase(t *testing.T, b *Programs, c testcase.Case, d decision.Decision) {
	rs := d.Policy.Ruleset()
	world := nettest.StartWorld(t)
	mustApplyFor(t, b, world.Pod, rs, d.Families)

	first := map[rules.Family]string{}
	for f, section := range map[rules.Family]string{rules.IPv4: "want.iptables", rules.IPv6: "want.ip6tables"} {
		first[f] = dump(t, b, world.Pod, f)
		if want, got := sortedRules(c.Section(section)), sortedRules(first[f]); !slices.Equal(want, got) {
			t.Errorf("the kernel lists for %s\n%s, not\n%s", f, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		checkList(t, b, world.Pod, f, c.Section(section))
	}
	c.CheckPackets(t, world, d.Policy)

	mustApplyFor(t, b, world.Pod, rs, d.Families)
	for f, want := range first {
		if got := dump(t, b, world.Pod, f); got != want {
			t.Errorf("a second run changes %s from\n%sto\n%s", f, want, got)
		}
	}
	checkRemoval(t, b, world.Pod, rs)
}

// sortedRules are the rules of a dump, by chain, each chain's in its own order.
func sortedRules(dump string) []string {
	var out []string
	table := ""
	for line := range strings.Lines(dump) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "*") {
			table = line[1:]
		}
		if strings.HasPrefix(line, "-A") {
			out = append(out, table+" "+line)
		}
	}
	chain := func(rule string) string { return strings.Join(strings.Fields(rule)[:3], " ") }
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(chain(a), chain(b)) })
	return out
}

// checkList reads the rules back the way CHECK does.
func checkList(t *testing.T, b *Programs, ns *nettest.Namespace, f rules.Family, restore string) {
	t.Helper()
	want, err := iptext.ParseSave(restore)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		found, err := b.Differences(t.Context(), Tables{f: want})
		for _, d := range found {
			t.Errorf("CHECK finds %s", d)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkRemoval(t *testing.T, b *Programs, ns *nettest.Namespace, rs rules.Ruleset) {
	t.Helper()
	for range 2 { // the second time there is nothing to remove
		err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
			return b.Remove(ctx, lock, owned(rs))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range rules.Families {
		if got := dump(t, b, ns, f); strings.Contains(got, "-A") || strings.Contains(got, "PROXY") || strings.Contains(got, "ISTIO") {
			t.Errorf("after removal %s still has\n%s", f, got)
		}
	}
}

// byTable puts the tables of a dump, and within each its chains, into alphabetical order: iptables-nft lists them in the
// order in which they were made.
func byTable(dump string) string {
	tables := strings.SplitAfter(dump, "COMMIT\n")
	for i, table := range tables {
		lines := strings.SplitAfter(table, "\n")
		slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(place(a), place(b)) })
		tables[i] = strings.Join(lines, "")
	}
	slices.Sort(tables)
	return strings.Join(tables, "")
}

// place sorts a line of iptables-save: the table, the chains by name, the rules by chain, the end.
func place(line string) string {
	switch words := strings.Fields(line); {
	case len(words) == 0 || line[0] == '*':
		return "0"
	case line[0] == ':':
		return "1" + words[0]
	case words[0] == "-A":
		return "2" + words[1]
	}
	return "3"
}
