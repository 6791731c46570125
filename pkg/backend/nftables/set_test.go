package nftables

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

func prefixes(words string) []netip.Prefix {
	var out []netip.Prefix
	for word := range strings.FieldsSeq(words) {
		out = append(out, netip.MustParsePrefix(word))
	}
	return out
}

// only is a ruleset of one rule in nat's OUTPUT.
func only(target rules.Target, m ...rules.Match) rules.Ruleset {
	return rules.Ruleset{Rules: []rules.Rule{{Chain: rules.Chain{Table: rules.Nat, Name: rules.Output}, Matches: m, Target: target}}}
}

func ruleLines(rs rules.Ruleset) []string {
	for _, b := range Compile(rs, rules.Families).listing() {
		_, lines := b.split()
		return lines
	}
	return nil
}

// Lists have one form, whatever they were written as, and nft agrees with it.
func TestLists(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		match rules.Match
		want  []string
	}{
		{rules.Destination{Prefixes: prefixes("10.0.0.0/8")}, []string{"ip daddr 10.0.0.0/8"}},
		{rules.Destination{Prefixes: prefixes("10.1.0.0/17")}, []string{"ip daddr 10.1.0.0/17"}},
		{rules.Destination{Prefixes: prefixes("10.1.2.3/32")}, []string{"ip daddr 10.1.2.3"}},
		{rules.Destination{Prefixes: prefixes("fd00::/7 fd00::/8")}, []string{"ip6 daddr fc00::/7"}},
		{rules.Destination{Prefixes: prefixes("10.1.2.3/32 10.1.2.4/32")}, []string{"ip daddr 10.1.2.3-10.1.2.4"}},
		{rules.Destination{Prefixes: prefixes("10.1.2.2/32 10.1.2.3/32")}, []string{"ip daddr 10.1.2.2/31"}},
		{rules.Destination{Prefixes: prefixes("10.1.2.3/32 10.1.2.5/32")}, []string{"ip daddr { 10.1.2.3, 10.1.2.5 }"}},
		{rules.Destination{Prefixes: prefixes("11.0.0.0/8 10.0.0.0/8 10.1.0.0/16 12.0.0.0/24")}, []string{"ip daddr 10.0.0.0-12.0.0.255"}},
		{rules.Destination{Prefixes: prefixes("10.0.0.0/8 10.0.0.0/8 12.0.0.0/8")}, []string{"ip daddr { 10.0.0.0/8, 12.0.0.0/8 }"}},
		{rules.Destination{Prefixes: prefixes("255.255.255.255/32 0.0.0.0/32 128.0.0.0/1 ::/128 ffff::/16")},
			[]string{"ip daddr { 0.0.0.0, 128.0.0.0/1 }", "ip6 daddr { ::, ffff::/16 }"}},
		{rules.Destination{Prefixes: prefixes("0.0.0.0/1 128.0.0.0/1")}, []string{"meta nfproto ipv4"}},
		{rules.Destination{Prefixes: prefixes("::/0 1.0.0.0/8")}, []string{"ip daddr 1.0.0.0/8", "meta nfproto ipv6"}},
		{rules.Destination{Prefixes: prefixes("10.0.0.0/9"), Not: true}, []string{"ip daddr != 10.0.0.0/9"}},
		{rules.Source{Prefixes: prefixes("127.0.0.6/32 ::6/128")}, []string{"ip saddr 127.0.0.6", "ip6 saddr ::6"}},
		{rules.Destination{}, nil},
		{rules.DstPorts{Ports: []uint16{81, 80, 81}}, []string{"th dport { 80, 81 }"}},
		{rules.DstPorts{Ports: []uint16{65535, 1}, Not: true}, []string{"th dport != { 1, 65535 }"}},
		{rules.DstPorts{Ports: []uint16{7, 7}}, []string{"th dport 7"}},
		{rules.DstPorts{}, nil},
		{rules.DstPorts{Ports: everyPort(1, 16, 1)}, []string{"th dport 1-16"}},
		{rules.DstPorts{Ports: everyPort(64, 127, 1)}, []string{"th dport 64-127"}},
		{rules.DstPorts{Ports: everyPort(1, 65535, 1)}, []string{"th dport 1-65535"}},
		{rules.DstPorts{Ports: append(everyPort(65500, 65535, 1), 65498, 80)}, []string{"th dport { 80, 65498, 65500-65535 }"}},
		{rules.DstPorts{Ports: append(everyPort(100, 120, 1), everyPort(122, 123, 1)...)}, []string{"th dport { 100-120, 122-123 }"}},
	} {
		t.Run(fmt.Sprint(c.match), func(t *testing.T) {
			t.Parallel()
			rs := only(rules.Accept{}, c.match)
			got := ruleLines(rs)
			for i, line := range got {
				got[i] = strings.TrimSuffix(line, " accept")
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			checkTable(t, nettest.StartNamespace(t, "list"), rs, rules.Families)
		})
	}
}

// everyPort is one of each step ports.
func everyPort(from, to, step int) []uint16 {
	var out []uint16
	for p := from; p <= to; p += step {
		out = append(out, uint16(p))
	}
	return out
}

// What is normalized holds the same addresses, in order, and with a gap between any two.
func TestNormalizedListsHoldTheSame(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var list []netip.Prefix
		var spans []span
		for range 1 + dice.IntN(6) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(dice.IntN(64))}), 26+dice.IntN(7)).Masked()
			list, spans = append(list, p), append(spans, prefixSpan(p))
		}
		spans = normalize(&nft.IPv4Addr, spans)
		for last := range 256 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(last)})
			want := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
			k := addrKey(a)
			got := slices.ContainsFunc(spans, func(s span) bool { return string(s.from[:]) <= string(k[:]) && string(k[:]) <= string(s.to[:]) })
			if got != want {
				t.Fatalf("%v becomes %s: %s is in it: %t, not %t", list, set{of: &nft.IPv4Addr, spans: spans}, a, got, want)
			}
		}
		for i := range len(spans) - 1 {
			if next, _ := spans[i].to.next(&nft.IPv4Addr); string(next[:]) >= string(spans[i+1].from[:]) {
				t.Fatalf("%v becomes %s", list, set{of: &nft.IPv4Addr, spans: spans})
			}
		}
	}
}

func TestTenThousandRanges(t *testing.T) {
	t.Parallel()
	rs := policy(append(manyRanges(5000), redirect.Range{Prefix: netip.MustParsePrefix("1.1.1.1/32"), Origin: "the test"})).Ruleset()
	w := nettest.StartWorld(t)
	list := checkTable(t, w.Pod, rs, rules.Families)
	for _, last := range []string{"11.0.0.0/28", "11.19.135.0/28", "2001:db8::/64", "2001:db8:1387::/64"} {
		if !strings.Contains(list, last) {
			t.Errorf("%s is not in the list", last)
		}
	}
	checkPackets(t, w, `
		out 1.1.1.1:80 -> outside
		out 11.19.135.15:80 -> outside
		out 11.19.135.16:80 -> proxy 15001
		out [2001:db8:1387::1]:80 -> outside
		out [2001:db8:1388::1]:80 -> proxy 15001`, 15001)
}

func excluding(ports []uint16) rules.Ruleset {
	p := policy(nil)
	for _, number := range ports {
		p.Outbound.ExcludePorts = append(p.Outbound.ExcludePorts, redirect.Port{Number: number, Origin: "the test"})
	}
	return p.Ruleset()
}

func TestThousandsOfPorts(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	checkTable(t, w.Pod, excluding(everyPort(1, 3999, 2)), rules.Families)
	checkPackets(t, w, "out 1.1.1.1:3999 -> outside\nout 1.1.1.1:3998 -> proxy 15001\nout 1.1.1.1:4001 -> proxy 15001", 15001)
}

// The list that takes the kernel longest is made within what a pod may wait for: this counts the processor's time, which is
// 0.1 s and, with single values, 4 s.
func TestNoListOfPortsTakesLong(t *testing.T) {
	t.Parallel()
	table := Compile(excluding(everyPort(1, 65535, 2)), rules.Families)
	ns := nettest.StartNamespace(t, "ports")
	var before, after unix.Rusage
	within(t, ns, func() error {
		return errors.Join(unix.Getrusage(unix.RUSAGE_THREAD, &before), Apply(table), unix.Getrusage(unix.RUSAGE_THREAD, &after))
	})
	if took := time.Duration(after.Stime.Nano() - before.Stime.Nano()); took > time.Second {
		t.Errorf("32,768 ports take the kernel %s", took)
	}
	if found := differences(t, ns, table.String()); found != nil {
		t.Error(found)
	}
}
