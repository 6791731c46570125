package nftables

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// within runs fn in the namespace and fails the test for its error.
func within(t testing.TB, ns *nettest.Namespace, fn func() error) {
	t.Helper()
	if err := ns.Do(fn); err != nil {
		t.Fatal(err)
	}
}

func mustApply(t testing.TB, ns *nettest.Namespace, rs rules.Ruleset, families []rules.Family) Table {
	t.Helper()
	table := Compile(rs, families)
	within(t, ns, func() error {
		if err := route.Apply(rs.Setup, families); err != nil {
			return err
		}
		return Apply(table)
	})
	return table
}

// runNFT runs nft in the namespace, with the input as its file.
func runNFT(t testing.TB, ns *nettest.Namespace, input string, args ...string) string {
	t.Helper()
	nettest.RequireProgram(t, "nft")
	var out []byte
	err := ns.Do(func() (err error) {
		cmd := exec.Command("nft", args...)
		cmd.Stdin = strings.NewReader(input)
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("nft %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listed is the table as nft lists it.
func listed(t testing.TB, ns *nettest.Namespace) string {
	t.Helper()
	return runNFT(t, ns, "", "--numeric", "--stateless", "list", "table", "inet", "detour")
}

func differences(t testing.TB, ns *nettest.Namespace, programmed string) []string {
	t.Helper()
	var found []string
	within(t, ns, func() (err error) {
		found, err = Differences(programmed)
		return err
	})
	return found
}

// build is the ruleset of the scenario.
func build(t testing.TB, c testcase.Case) rules.Ruleset {
	t.Helper()
	decision, err := c.Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	return decision.Policy.Ruleset()
}
