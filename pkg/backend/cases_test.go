package backend

import (
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/testcase"
)

func TestEveryCaseGivesItsTable(t *testing.T) {
	for _, c := range testcase.Load(t, "../..") {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			decision, err := c.Decide(t)
			if err != nil || decision.Skip != "" {
				return
			}
			program, err := Prepare(t.Context(), NFTables, decision.Policy.Ruleset(), decision.Families)
			if err != nil {
				t.Fatal(err)
			}
			c.Want(t, map[string]string{"want.nft": strings.TrimPrefix(program.Text(false), "# nft -f\n")})
		})
	}
}
