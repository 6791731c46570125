package iptables

import (
	"context"
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

// forBoth runs a test once with each variant of iptables.
func forBoth(t *testing.T, test func(t *testing.T, b *Programs)) {
	for _, v := range []Variant{Nft, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel()
			nettest.RequireProgram(t, "iptables-"+string(v)+"-restore")
			b, err := find(defaultOf(t.Context()), v)
			if err != nil {
				t.Fatal(err)
			}
			test(t, b)
		})
	}
}

func mustApply(t *testing.T, b *Programs, ns *nettest.Namespace, rs rules.Ruleset) {
	t.Helper()
	mustApplyFor(t, b, ns, rs, rules.Families)
}

func mustApplyFor(t *testing.T, b *Programs, ns *nettest.Namespace, rs rules.Ruleset, families []rules.Family) {
	t.Helper()
	err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
		if err := route.Apply(rs.Setup, families); err != nil {
			return err
		}
		return b.Apply(ctx, lock, Compile(rs, families), nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// dump is the family's tables as iptables-save prints them, without comments and counters.
func dump(t *testing.T, b *Programs, ns *nettest.Namespace, f rules.Family) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		cmd := exec.Command(b.tools[f].save)
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", b.tools[f].save, err)
	}
	var kept strings.Builder
	for line := range strings.Lines(string(out)) {
		if line[0] != '#' {
			kept.WriteString(strings.Split(line, " [")[0])
			if strings.Contains(line, " [") {
				kept.WriteByte('\n')
			}
		}
	}
	return kept.String()
}

// shell runs a script in the namespace in which iptables and ip6tables are the backend's.
func shell(t *testing.T, b *Programs, ns *nettest.Namespace, script string) {
	t.Helper()
	shellOutput(t, b, ns, script)
}

func shellOutput(t *testing.T, b *Programs, ns *nettest.Namespace, script string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		cmd := exec.Command("sh", "-ec", strings.NewReplacer(
			"ip6tables", "ip6tables-"+string(b.variant), "iptables", "iptables-"+string(b.variant)).Replace(script))
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
		out, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// owned is what a ruleset has in both families.
func owned(rs rules.Ruleset) Tables {
	return Compile(rs, rules.Families)
}
