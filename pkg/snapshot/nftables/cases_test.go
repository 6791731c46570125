package nftables_test

import (
	"testing"

	backend "github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// What detour programs itself has sets without nft's user data.
func TestReadSaysOfEveryCaseWhatNftSays(t *testing.T) {
	nettest.RequireNetns(t)
	for _, c := range testcase.Load(t, "../../..") {
		if c.Section("want.nft") == "" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			decision, err := c.Decide(t)
			if err != nil {
				t.Fatal(err)
			}
			for _, families := range [][]rules.Family{decision.Families, rules.Families[:1], rules.Families[1:]} {
				ns := start(t, "case")
				table := backend.Compile(decision.Policy.Ruleset(), families)
				if err := ns.Do(func() error { return backend.Apply(table) }); err != nil {
					t.Fatal(err)
				}
				judge(t, ns)
			}
		})
	}
}
