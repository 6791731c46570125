package iptext

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/redirect"

	"github.com/detour-cni/detour/pkg/rules"
)

// excludingPorts is istio's policy, which has two rules for each port.
func excludingPorts(ports []uint16) rules.Ruleset {
	p := everything
	p.Outbound.ExcludePorts = nil
	for _, number := range ports {
		p.Outbound.ExcludePorts = append(p.Outbound.ExcludePorts, redirect.Port{Number: number, Origin: "A"})
	}
	return p.Ruleset()
}

// byChain are the rules for IPv4, each chain's in their order.
func byChain(rs rules.Ruleset) []string {
	var out []string
	for _, r := range For(rs, rules.IPv4).Rules {
		out = append(out, string(r.Chain.Table)+" "+Print(r))
	}
	chain := func(line string) string { return strings.Join(strings.Fields(line)[:3], " ") }
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(chain(a), chain(b)) })
	return out
}

// The mesh's own rules are kept as long as they are few, and of more those with neighbours become one, in the same place.
func TestLongListsBecomeShort(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ports []uint16
		want  string
	}{
		{every(1, 2, 1), `
			-A ISTIO_OUTPUT -p tcp -m tcp --dport 1 -j RETURN
			-A ISTIO_OUTPUT -p udp -m udp --dport 1 -j RETURN
			-A ISTIO_OUTPUT -p tcp -m tcp --dport 2 -j RETURN
			-A ISTIO_OUTPUT -p udp -m udp --dport 2 -j RETURN`},
		{every(1, 44000, 1), `
			-A ISTIO_OUTPUT -p tcp -m multiport --dports 1:44000 -j RETURN
			-A ISTIO_OUTPUT -p udp -m multiport --dports 1:44000 -j RETURN`},
	} {
		few, got := byChain(excludingPorts(nil)), byChain(excludingPorts(c.ports))
		at := slices.IndexFunc(few, func(line string) bool { return strings.HasPrefix(line, "nat -A ISTIO_OUTPUT ") })
		for line := range strings.Lines(strings.TrimSpace(c.want)) {
			few = slices.Insert(few, at, "nat "+strings.TrimSpace(line))
			at++
		}
		if !slices.Equal(got, few) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(few, "\n"))
		}
	}
	if got := len(For(excludingPorts(every(1, 200, 1)), rules.IPv4).Rules); got < 400 {
		t.Errorf("200 ports are %d rules", got)
	}
}

func TestLongListsOfRangesBecomeShort(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{
		500:   "10.0.0.0/32 ... 10.0.1.243/32",
		501:   "10.0.0.0/24 ... 10.0.1.244/32",
		512:   "10.0.0.0/23",
		44000: "10.0.0.0/17 ... 10.0.171.192/27",
	} {
		var list []netip.Prefix
		for i := range n {
			list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
		}
		got := merged(list)
		words := got[0].String()
		if len(got) > 1 {
			words += " ... " + got[len(got)-1].String()
		}
		if words != want {
			t.Errorf("%d addresses become %s, not %s", n, words, want)
		}
	}
}

// Whatever the ranges, what they become holds the same addresses, each once.
func TestMergedRangesHoldTheSame(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		list := make([]netip.Prefix, maxAsWritten+1)
		for i := range list {
			a := netip.AddrFrom4([4]byte{10, 0, byte(dice.IntN(6)), byte(dice.IntN(256))})
			if i%7 == 0 {
				a = netip.MustParseAddr(fmt.Sprintf("fd00::%x", dice.IntN(64)))
			}
			list[i] = netip.PrefixFrom(a, a.BitLen()-dice.IntN(1+dice.IntN(6))).Masked()
		}
		got := merged(slices.Clone(list))
		contains := func(list []netip.Prefix, a netip.Addr) (n int) {
			for _, p := range list {
				if p.Contains(a) {
					n++
				}
			}
			return n
		}
		for _, first := range []string{"10.0.0.0", "fd00::"} {
			a := netip.MustParseAddr(first)
			for range 2048 {
				if want := min(contains(list, a), 1); contains(got, a) != want {
					t.Fatalf("%s is in %d of %v, which were %v", a, contains(got, a), got, list)
				}
				a = a.Next()
			}
		}
	}
	everything := make([]netip.Prefix, maxAsWritten+1)
	for i := range everything {
		everything[i] = netip.MustParsePrefix([]string{"0.0.0.0/1", "128.0.0.0/1"}[i%2])
	}
	if got := merged(everything); fmt.Sprint(got) != "[0.0.0.0/0]" {
		t.Errorf("got %v", got)
	}
}
