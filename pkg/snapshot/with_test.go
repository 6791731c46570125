package snapshot

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
)

// someRules has chains with anonymous sets, tables of both programs, and a family that a walk does not visit.
const someRules = `
table ip own {
	chain out { type filter hook output priority 0; ip daddr vmap { 10.0.0.1 : jump one, 10.0.0.2 : goto two }; counter; }
	chain one { tcp dport { 80, 443 } drop; }
	chain two { tcp dport != { 80, 443 } reject; }
}
table ip6 own { chain out { type filter hook output priority 0; policy drop; }; }
table bridge own { chain out { type filter hook output priority 0; accept; }; }
`

func withRules(t *testing.T) *nettest.Namespace {
	t.Helper()
	nettest.RequireProgram(t, "nft")
	nettest.RequireProgram(t, "iptables-nft")
	ns := nettest.StartNamespace(t, "with")
	run(t, ns, "ip link add eth0 type veth peer name eth1; ip addr add 10.0.0.9/24 dev eth0; ip link set eth0 up; ip link set eth1 up")
	run(t, ns, "iptables-nft -t nat -A OUTPUT -d 10.0.0.3 -j DNAT --to 10.0.0.1")
	run(t, ns, "nft -f - <<'END'"+someRules+"END")
	return ns
}

func run(t *testing.T, ns *nettest.Namespace, script string) {
	t.Helper()
	err := ns.Do(func() error {
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var toOne = trace.Packet{Direction: trace.Out, Protocol: 6, Dst: netip.MustParseAddrPort("10.0.0.1:80")}

func TestWithHasWhatReadHas(t *testing.T) {
	t.Parallel()
	ns := withRules(t)
	var read, with []string
	err := ns.Do(func() error {
		all, err := Read()
		if err != nil {
			return err
		}
		read = listed(t, all)
		return With(func(all *trace.Namespace) error {
			with = listed(t, all)
			return nil
		})
	})
	if err != nil || !slices.Equal(read, with) || !slices.Contains(read, "table ip own chain one rule 1: tcp dport { 80, 443 } drop") {
		t.Errorf("%v: Read has\n%s\nWith has\n%s", err, strings.Join(read, "\n"), strings.Join(with, "\n"))
	}
}

// listed are all chains and rules.
func listed(t *testing.T, ns *trace.Namespace) (all []string) {
	t.Helper()
	for _, table := range ns.Tables {
		for _, c := range table.Chains {
			all = append(all, fmt.Sprint(table.Origin, table.Family, table.Name, c.Name, c.Base))
			rules, err := c.Rules()
			if err != nil {
				t.Error(err)
			}
			for _, r := range rules {
				all = append(all, fmt.Sprintf("%s: %s", r, r.Text))
			}
		}
	}
	return all
}

func TestWithReadsFromAnyThread(t *testing.T) {
	t.Parallel()
	ns := withRules(t)
	err := ns.Do(func() error {
		return With(func(now *trace.Namespace) error {
			done := make(chan error)
			go func() { // on a thread of another namespace
				r, err := trace.Walk(now, toOne)
				if err == nil && r.Ways[0].Verdict != trace.Dropped {
					err = fmt.Errorf("the packet is %s", r.Ways[0].Verdict)
				}
				done <- err
			}()
			return <-done
		})
	})
	if err != nil {
		t.Error(err)
	}
}

// A walk through rules that change under it is an error, and is done once more.
func TestWithBeginsAnewIfTheRulesChange(t *testing.T) {
	t.Parallel()
	ns := withRules(t)
	for _, changes := range []int{0, 1, 2} {
		calls := 0
		var verdict trace.Outcome
		err := ns.Do(func() error {
			return With(func(now *trace.Namespace) error {
				calls++
				if calls <= changes {
					run(t, ns, "nft insert rule ip own one accept")
				}
				r, err := trace.Walk(now, toOne)
				if err == nil {
					verdict = r.Ways[0].Verdict
				}
				return err
			})
		})
		switch {
		case calls != min(changes+1, 2):
			t.Errorf("%d changes: %d calls", changes, calls)
		case changes < 2 && (err != nil || verdict != []trace.Outcome{trace.Dropped, trace.Accepted}[changes]):
			t.Errorf("%d changes: %q, %v", changes, verdict, err)
		case changes == 2 && (err == nil || !strings.Contains(err.Error(), "changed while they were read: try again")):
			t.Errorf("%d changes: %v", changes, err)
		}
	}
}
