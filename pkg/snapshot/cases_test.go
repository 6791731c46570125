package snapshot

import (
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Each scenario's packets end where the scenario wants them to, by a walk through what the kernel holds once a backend has programmed the
// scenario's rules.
func TestPacketsOfEveryCaseEndWhereTheWalkSays(t *testing.T) {
	forEachKernel(t, func(t *testing.T, k kernel, number int) {
		p := newPod(t, k)
		for i, c := range testcase.Load(t, "../..") {
			decision, err := c.Decide(t)
			if c.Section("packets") == "" || err != nil || i%3 != number%3 && testing.Short() {
				continue
			}
			rs := decision.Policy.Ruleset()
			if rs.Gated() && k.counts {
				continue // iptables has no gate
			}
			p.program(t, rules.Ruleset{}, rules.Families)
			p.program(t, rs, decision.Families)
			packets := parse(t, c.Section("packets"))
			proxies := decision.Policy.Sidecar().Listeners()
			if err := p.world.Serve(packets, proxies...); err != nil {
				t.Fatal(err)
			}
			for _, n := range packets {
				got, results, err := predict(p.read(t), n, proxies)
				if err != nil || got != n.Want.String() {
					t.Errorf("%s: %s: %v, the walk says %s\n%s", c.Name, n, err, got, steps(results))
				}
				if rs.Gated() { // it may open the gate
					if _, err := p.world.Send(n); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	})
}

func parse(t *testing.T, text string) []nettest.Packet {
	t.Helper()
	packets, err := nettest.ParsePackets(text)
	if err != nil {
		t.Fatal(err)
	}
	return packets
}
