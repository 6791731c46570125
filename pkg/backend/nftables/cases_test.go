package nftables

import (
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Every scenario with rules, for real: what nft lists is what it lists after reading our text, the packets end where they
// should, CHECK finds nothing, a second run changes nothing, and removal leaves nothing.
func TestEveryCaseInTheKernel(t *testing.T) {
	testcase.InKernel(t, "../../..", "want.nft", func(t *testing.T, c testcase.Case, d decision.Decision) {
		rs := d.Policy.Ruleset()
		world := nettest.StartWorld(t)
		first := checkTable(t, world.Pod, rs, d.Families)
		c.CheckPackets(t, world, d.Policy)
		mustApply(t, world.Pod, rs, d.Families)
		if got := strings.ReplaceAll(listed(t, world.Pod), "\t\telements = { 0x00000000 }\n", ""); got != first { // but for an open gate
			t.Errorf("a second run changes\n%sto\n%s", first, got)
		}
		checkRemoval(t, world.Pod)
		for _, f := range rules.Families {
			checkTable(t, nettest.StartNamespace(t, "one"), rs, []rules.Family{f})
		}
	})
}

// checkTable programs the ruleset and compares it with what nft and we ourselves say about it.
func checkTable(t *testing.T, ns *nettest.Namespace, rs rules.Ruleset, families []rules.Family) (list string) {
	t.Helper()
	table := mustApply(t, ns, rs, families)
	oracle := nettest.StartNamespace(t, "oracle")
	runNFT(t, oracle, table.String(), "-f", "-")
	list = listed(t, ns)
	if want := listed(t, oracle); list != want {
		t.Errorf("nft lists what was sent for %v as\n%sand what it read as\n%sfrom\n%s", families, list, want, table)
	}
	for _, in := range []*nettest.Namespace{ns, oracle} {
		for _, d := range differences(t, in, table.String()) {
			t.Errorf("CHECK finds for %v: %s", families, d)
		}
	}
	return list
}

func checkRemoval(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	for range 2 { // the second time there is nothing to remove
		within(t, ns, Remove)
	}
	if left := runNFT(t, ns, "", "list", "ruleset"); left != "" {
		t.Errorf("after removal there is still\n%s", left)
	}
}

// The text depends on the ruleset alone, and is read as it was written.
func TestTheTextIsTheSameWheneverItIsRendered(t *testing.T) {
	for _, c := range testcase.Load(t, "../../..") {
		if c.Section("want.iptables") == "" {
			continue
		}
		for _, families := range [][]rules.Family{rules.Families, rules.Families[:1], rules.Families[1:]} {
			text := Compile(build(t, c), families).String()
			if again := Compile(build(t, c), families).String(); again != text {
				t.Errorf("%s: first\n%sthen\n%s", c.Name, text, again)
			}
			if l, err := parseListing(text); err != nil || l.String() != text {
				t.Errorf("%s: read as\n%s%v", c.Name, l, err)
			}
		}
	}
}
