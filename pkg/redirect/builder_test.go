package redirect

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

func TestOriginsAreGroupedInTheOrderOfTheirFirstPort(t *testing.T) {
	p := valid()
	p.Outbound.ExcludePorts = []Port{{Number: 80, Origin: "A"}, {Number: 81, Origin: "B"}, {Number: 82, Origin: "A"}}
	p.Outbound.ExcludeRanges = []Range{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Origin: "A"}, {Prefix: netip.MustParsePrefix("::/1"), Origin: "B"}}
	var why []string
	for _, r := range p.Ruleset().Rules {
		if strings.Contains(r.Why, "excluded") {
			why = append(why, r.Why)
		}
	}
	want := "ports excluded by A (80, 82), B (81)|range excluded by B|range excluded by A"
	if got := strings.Join(why, "|"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestInsertCountsWithinTheChain(t *testing.T) {
	b := &builder{}
	b.append(rules.Nat, "A", "1", rules.Return{})
	b.append(rules.Nat, "B", "2", rules.Return{})
	b.append(rules.Nat, "A", "3", rules.Return{})
	b.insert(rules.Nat, "A", 2, "4", rules.Return{})
	b.insert(rules.Nat, "B", 1, "5", rules.Return{})
	b.insert(rules.Nat, "B", 9, "6", rules.Return{})
	b.insert(rules.Mangle, "A", 1, "7", rules.Return{})
	var order string
	for _, r := range b.rs.Rules {
		order += r.Why
	}
	if order != "1524367" {
		t.Errorf("got %s", order)
	}
}
