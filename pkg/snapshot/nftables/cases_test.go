package nftables_test

import (
	"testing"

	backend "github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// What detour programs itself has sets without nft's user data.
func TestReadSaysOfEveryCaseWhatNftSays(t *testing.T) {
	testcase.InKernel(t, "../../..", "want.nft", func(t *testing.T, _ testcase.Case, d decision.Decision) {
		for _, families := range [][]rules.Family{d.Families, rules.Families[:1], rules.Families[1:]} {
			ns := start(t, "case")
			table := backend.Compile(d.Policy.Ruleset(), families)
			if err := ns.Do(func() error { return backend.Apply(table) }); err != nil {
				t.Fatal(err)
			}
			judge(t, ns)
		}
	})
}
