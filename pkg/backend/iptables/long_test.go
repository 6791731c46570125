package iptables

import (
	"net/netip"
	"testing"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// Lists of tens of thousands are few rules, and the packets end where they should.
func TestTensOfThousands(t *testing.T) {
	var ports, all []redirect.Port
	for number := 1; number <= 65535; number++ {
		port := redirect.Port{Number: uint16(number), Origin: "the test"}
		if all = append(all, port); number <= 44000 && number != 80 {
			ports = append(ports, port)
		}
	}
	ranges := policy()
	for i := range 10_000 {
		addr := netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})
		ranges.Outbound.ExcludeRanges = append(ranges.Outbound.ExcludeRanges, redirect.Range{Prefix: netip.PrefixFrom(addr, 32), Origin: "the test"})
	}
	many, every := policy(), policy()
	many.Outbound.ExcludePorts, every.Outbound.ExcludePorts = ports, all
	istio := redirect.Istio{
		Proxy:    redirect.Proxy{UID: 1337, GID: 1337, Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
		Outbound: redirect.IstioOutbound{All: true, ExcludePorts: ports},
	}
	const ofPorts = "out 1.1.1.1:79 -> outside\nout 1.1.1.1:80 -> proxy 15001\nout [2001:db8::1]:44000 -> outside\nout 1.1.1.1:44001 -> proxy 15001"
	for name, c := range map[string]struct {
		policy  redirect.Policy
		packets string
	}{
		"ports":         {many, ofPorts},
		"istio's ports": {istio, ofPorts},
		"every port":    {every, "out 1.1.1.1:1 -> outside\nout 1.1.1.1:65535 -> outside"},
		"addresses":     {ranges, "out 11.0.0.0:80 -> outside\nout 11.0.39.15:80 -> outside\nout 11.0.39.16:80 -> proxy 15001"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rs := c.policy.Ruleset()
			packets, err := nettest.ParsePackets(c.packets)
			if err != nil {
				t.Fatal(err)
			}
			for f, save := range owned(rs) {
				if len(save.Rules) > 30 {
					t.Errorf("%d rules for %s", len(save.Rules), f)
				}
			}
			forBoth(t, func(t *testing.T, b *Programs) {
				world := nettest.StartWorld(t)
				mustApply(t, b, world.Pod, rs)
				nettest.CheckPackets(t, world, packets, 15001)
				for _, f := range rules.Families {
					checkList(t, b, world.Pod, f, iptext.Restore(rs, f, false))
				}
				checkRemoval(t, b, world.Pod, rs)
			})
		})
	}
}
