package doctor

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// plugin/README.md has the features as the code does.
func TestTheReadmeHasTheFeatures(t *testing.T) {
	readme, err := os.ReadFile("../../plugin/README.md")
	if err != nil {
		t.Fatal(err)
	}
	cell := func(n need) string {
		if n.what == "" {
			return "can't"
		}
		return strings.TrimSuffix(fmt.Sprintf("%s: %s, %s", n.since, n.what, n.module), ", ")
	}
	for _, f := range features {
		if row := fmt.Sprintf("| `%s` | %s | %s | %s |\n", f.name, f.use, cell(f.nft), cell(f.xt)); !strings.Contains(string(readme), row) {
			t.Errorf("it lacks %s", row)
		}
	}
}
