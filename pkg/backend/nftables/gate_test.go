package nftables

import (
	"slices"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// gated makes a ruleset wait for the first packet that the proxy's user sends.
func gated(rs rules.Ruleset, uid uint32) rules.Ruleset {
	rs.Rules = slices.Clone(rs.Rules)
	for i, r := range rs.Rules {
		if r.Chain == (rules.Chain{Table: rules.Nat, Name: rules.Output}) {
			rs.Rules[i].Matches = append(slices.Clone(r.Matches), rules.GateOpen{})
		}
	}
	rs.Rules = append(rs.Rules, rules.Rule{Chain: rules.Chain{Table: rules.Mangle, Name: rules.Output},
		Matches: []rules.Match{rules.OwnerUID{ID: uid}}, Target: rules.OpenGate{}, Why: "the proxy lives"})
	return rs
}

const proxyUID = 1500

var (
	direct  = "out 1.1.1.1:80 -> outside\nout [2001:db8::1]:80 -> outside"
	proxied = "out 1.1.1.1:80 -> proxy 15001\nout [2001:db8::1]:80 -> proxy 15001"
)

func checkPackets(t *testing.T, w *nettest.World, text string, proxyPorts ...uint16) {
	t.Helper()
	packets, err := nettest.ParsePackets(text)
	if err != nil {
		t.Fatal(err)
	}
	nettest.CheckPackets(t, w, packets, proxyPorts...)
}

func wantArmed(t *testing.T, ns *nettest.Namespace, wantArmed, wantGated bool) {
	t.Helper()
	within(t, ns, func() error {
		armed, gated, err := Armed()
		if armed != wantArmed || gated != wantGated {
			t.Errorf("armed %t, gated %t, want %t, %t", armed, gated, wantArmed, wantGated)
		}
		return err
	})
}

// Whichever packet of the proxy's user comes first, of whatever protocol and family, everything is redirected from then on,
// and nothing before.
func TestTheFirstPacketOfTheProxyArms(t *testing.T) {
	rs := gated(build(t, testcase.Find(t, "../../..", "osm/defaults")), proxyUID)
	for name, first := range map[string]string{
		"UDP":                "out udp 9.9.9.9:53 uid=1500 -> outside",
		"UDP over IPv6":      "out udp [2001:db8::9]:53 uid=1500 -> outside",
		"TCP":                "out 9.9.9.9:443 uid=1500 -> outside",
		"TCP over IPv6":      "out [2001:db8::9]:443 uid=1500 -> outside",
		"TCP within the pod": "out 127.0.0.1:9 uid=1500 -> app",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := nettest.StartWorld(t)
			w.ProxyUID = nettest.AppUID // answers of a listener would arm as well
			checkTable(t, w.Pod, rs, rules.Families)
			checkPackets(t, w, direct+"\nin 8080 -> proxy 15003", 15001, 15003)
			wantArmed(t, w.Pod, false, true)
			checkPackets(t, w, first)
			wantArmed(t, w.Pod, true, true)
			checkPackets(t, w, proxied+"\nout 1.1.1.1:80 uid=1500 -> outside")
		})
	}
}

// CHECK takes the element for no difference, and a second ADD for nothing to begin anew with.
func TestArmedStaysSo(t *testing.T) {
	rs := gated(build(t, testcase.Find(t, "../../..", "osm/defaults")), proxyUID)
	w := nettest.StartWorld(t)
	w.ProxyUID = nettest.AppUID
	table := mustApply(t, w.Pod, rs, rules.Families)
	mustApply(t, w.Pod, rs, rules.Families)
	wantArmed(t, w.Pod, false, true)
	checkPackets(t, w, "out udp 9.9.9.9:53 uid=1500 -> outside\n"+proxied, 15001)
	for range 2 {
		for _, d := range differences(t, w.Pod, table.String()) {
			t.Errorf("CHECK finds %s", d)
		}
		mustApply(t, w.Pod, rs, rules.Families)
		wantArmed(t, w.Pod, true, true)
		checkPackets(t, w, proxied)
	}
	within(t, w.Pod, Remove)
	mustApply(t, w.Pod, rs, rules.Families)
	wantArmed(t, w.Pod, false, true)
}

func TestWithoutAGateThereIsNothingToArm(t *testing.T) {
	ns := nettest.StartNamespace(t, "ungated")
	wantArmed(t, ns, false, false)
	mustApply(t, ns, policy(nil).Ruleset(), rules.Families)
	wantArmed(t, ns, false, false)
}

// The packet that arms is one of those that follow: mangle is asked ahead of nat.
func TestThePacketThatArmsIsRedirectedItself(t *testing.T) {
	rs := gated(policy(nil).Ruleset(), nettest.AppUID)
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, rs, rules.Families)
	checkPackets(t, w, "out 1.1.1.1:80 uid=2000 -> outside\nout 1.1.1.1:80 -> proxy 15001")
}
