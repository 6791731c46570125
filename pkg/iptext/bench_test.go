package iptext_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// From a policy to iptables-restore's input for IPv4: of the guide's pod, and with many excluded ranges.
func BenchmarkRestore(b *testing.B) {
	decision, err := testcase.Find(b, "../..", "osm/guide").Decide(b)
	if err != nil {
		b.Fatal(err)
	}
	for _, ranges := range []int{0, 10_000} {
		policy := decision.Policy.(redirect.OSM)
		for i := range ranges {
			prefix := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 28)
			policy.Outbound.ExcludeRanges = append(policy.Outbound.ExcludeRanges, redirect.Range{Prefix: prefix, Origin: "the benchmark"})
		}
		b.Run(fmt.Sprint("ranges=", ranges), func(b *testing.B) {
			for b.Loop() {
				iptext.Restore(policy.Ruleset(), rules.IPv4, false)
			}
		})
	}
}
