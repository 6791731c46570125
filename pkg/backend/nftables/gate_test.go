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

func wantGate(t *testing.T, ns *nettest.Namespace, wantOpen, wantGated bool) {
	t.Helper()
	within(t, ns, func() error {
		open, gated, err := Gate()
		if open != wantOpen || gated != wantGated {
			t.Errorf("open %t, gated %t, want %t, %t", open, gated, wantOpen, wantGated)
		}
		return err
	})
}

// The first packet of the proxy's user starts all redirection, whatever its protocol and family.
func TestTheProxysFirstPacketOpensTheGate(t *testing.T) {
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
			w.ProxyUID = nettest.AppUID // answers of a listener would open it as well
			checkTable(t, w.Pod, rs, rules.Families)
			checkPackets(t, w, direct+"\nin 8080 -> proxy 15003", 15001, 15003)
			wantGate(t, w.Pod, false, true)
			checkPackets(t, w, first)
			wantGate(t, w.Pod, true, true)
			checkPackets(t, w, proxied+"\nout 1.1.1.1:80 uid=1500 -> outside")
		})
	}
}

// An open gate is no difference for CHECK, and a second ADD leaves it open.
func TestAnOpenGateStaysOpen(t *testing.T) {
	rs := gated(build(t, testcase.Find(t, "../../..", "osm/defaults")), proxyUID)
	w := nettest.StartWorld(t)
	w.ProxyUID = nettest.AppUID
	table := mustApply(t, w.Pod, rs, rules.Families)
	mustApply(t, w.Pod, rs, rules.Families)
	wantGate(t, w.Pod, false, true)
	checkPackets(t, w, "out udp 9.9.9.9:53 uid=1500 -> outside\n"+proxied, 15001)
	for range 2 {
		for _, d := range differences(t, w.Pod, table.String()) {
			t.Errorf("CHECK finds %s", d)
		}
		mustApply(t, w.Pod, rs, rules.Families)
		wantGate(t, w.Pod, true, true)
		checkPackets(t, w, proxied)
	}
	within(t, w.Pod, Remove)
	mustApply(t, w.Pod, rs, rules.Families)
	wantGate(t, w.Pod, false, true)
}

func TestWithoutAGate(t *testing.T) {
	ns := nettest.StartNamespace(t, "ungated")
	wantGate(t, ns, false, false)
	mustApply(t, ns, policy(nil).Ruleset(), rules.Families)
	wantGate(t, ns, false, false)
}

// mangle runs ahead of nat, so the packet that opens the gate meets an open one.
func TestThePacketThatOpensTheGateIsRedirectedItself(t *testing.T) {
	rs := gated(policy(nil).Ruleset(), nettest.AppUID)
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, rs, rules.Families)
	checkPackets(t, w, "out 1.1.1.1:80 uid=2000 -> outside\nout 1.1.1.1:80 -> proxy 15001")
}
