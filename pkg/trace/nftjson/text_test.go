package nftjson_test

import (
	"os"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
)

// everything is a namespace with the rules of testdata.
func everything(t *testing.T) *nettest.Namespace {
	t.Helper()
	nettest.RequireProgram(t, "nft")
	ns := nettest.StartNamespace(t, "nft")
	run(t, ns, "", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
	for _, file := range []string{"testdata/objects.nft", "testdata/rules.nft"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		run(t, ns, string(text), "nft", "-f", "-")
	}
	return ns
}

// nativeRules returns the rules of each chain as `nft list ruleset` prints them.
func nativeRules(listing string) map[string][]string {
	rules := map[string][]string{}
	table, chain := "", ""
	for line := range strings.Lines(listing) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "}":
		case words[0] == "table":
			table = words[1] + " " + words[2]
		case strings.HasPrefix(line, "\t\t"):
			if chain != "" && words[0] != "type" && words[0] != "comment" {
				rules[chain] = append(rules[chain], strings.TrimSpace(line))
			}
		case strings.HasPrefix(line, "\t"):
			chain = ""
			if words[0] == "chain" {
				chain = table + " " + words[1]
			}
		}
	}
	return rules
}

func TestTextIsWhatNftPrints(t *testing.T) {
	t.Parallel()
	ns := everything(t)
	want := nativeRules(run(t, ns, "", "nft", "list", "ruleset"))
	tables, err := nftjson.Read([]byte(run(t, ns, "", "nft", "-j", "list", "ruleset")))
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, table := range tables {
		for _, chain := range table.Chains {
			name := string(table.Family) + " " + table.Name + " " + chain.Name
			rules := rulesOf(t, chain)
			if len(rules) != len(want[name]) {
				t.Errorf("%s: %d rules, nft lists %d", name, len(rules), len(want[name]))
				continue
			}
			for i, rule := range rules {
				compared++
				if got := fullText(rule); got != want[name][i] {
					t.Errorf("%s:\n got %s\nwant %s", rule, got, want[name][i])
				}
			}
		}
	}
	if compared < 400 {
		t.Errorf("compared %d rules only", compared)
	}
}

func fullText(r *trace.Rule) string {
	if r.Comment == "" {
		return r.Text
	}
	return r.Text + ` comment "` + r.Comment + `"`
}
