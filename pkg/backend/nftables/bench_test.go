package nftables

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// manyRanges are n ranges of each family, none a neighbour of another.
func manyRanges(n int) []redirect.Range {
	var out []redirect.Range
	for i := range n {
		out = append(out,
			redirect.Range{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 28), Origin: "the test"},
			redirect.Range{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0xd, 0xb8, byte(i >> 8), byte(i)}), 64), Origin: "the test"})
	}
	return out
}

func policy(ranges []redirect.Range) redirect.OSM {
	return redirect.OSM{
		Chains:   redirect.Chains{Inbound: "PROXY_INBOUND", InboundRedirect: "PROXY_IN_REDIRECT", Outbound: "PROXY_OUTPUT", OutboundRedirect: "PROXY_REDIRECT"},
		Proxy:    redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
		Outbound: redirect.Outbound{ExcludeRanges: ranges},
	}
}

func guide(b *testing.B) rules.Ruleset {
	return build(b, testcase.Find(b, "../../..", "osm/guide"))
}

func tenThousand(*testing.B) rules.Ruleset { return policy(manyRanges(5000)).Ruleset() }

// From the ruleset to the kernel's answer.
func BenchmarkApply(b *testing.B)      { benchmarkApply(b, guide(b)) }
func BenchmarkApply10000(b *testing.B) { benchmarkApply(b, tenThousand(b)) }

func benchmarkApply(b *testing.B, rs rules.Ruleset) {
	inNew(b, func() error { return Apply(Compile(rs, rules.Families)) })
}

// What nft alone takes for the same tables.
func BenchmarkNft(b *testing.B)      { benchmarkNft(b, guide(b)) }
func BenchmarkNft10000(b *testing.B) { benchmarkNft(b, tenThousand(b)) }

func benchmarkNft(b *testing.B, rs rules.Ruleset) {
	nettest.RequireProgram(b, "nft")
	file := filepath.Join(b.TempDir(), "table")
	if err := os.WriteFile(file, []byte(Compile(rs, rules.Families).String()), 0o600); err != nil {
		b.Fatal(err)
	}
	inNew(b, func() error {
		if out, err := exec.Command("nft", "-f", file).CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		return nil
	})
}

// The same without the kernel: what goes into the socket.
func BenchmarkCompile(b *testing.B)      { benchmarkCompile(b, guide(b)) }
func BenchmarkCompile10000(b *testing.B) { benchmarkCompile(b, tenThousand(b)) }

func benchmarkCompile(b *testing.B, rs rules.Ruleset) {
	for b.Loop() {
		Compile(rs, rules.Families).transaction(state{})
	}
}

// inNew runs fn in a new namespace each time, the making of which is not timed.
func inNew(b *testing.B, fn func() error) {
	nettest.RequireNetns(b)
	for b.Loop() {
		b.StopTimer()
		ns, err := nettest.NewNamespace("bench")
		if err != nil {
			b.Fatal(err)
		}
		within(b, ns, func() error {
			b.StartTimer()
			defer b.StopTimer()
			return fn()
		})
		if err := ns.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
