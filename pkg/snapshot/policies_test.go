package snapshot

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

var (
	seed    = flag.Uint64("snapshot.seed", 1, "seed of the random policies; 0 takes the clock")
	onlyOne = flag.Int("snapshot.policy", -1, "test only the random policy of this number, in each kernel")
)

// packetsOf is how many packets are sent for each policy.
const packetsOf = 20

// Packets of random policies end where the walk says they end, and through the rules that the walk names.
func TestRandomPoliciesEndWhereTheWalkSays(t *testing.T) {
	policies := 500
	if testing.Short() {
		policies = 50
	}
	start := *seed
	if start == 0 {
		start = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -snapshot.seed=%d", start)
	forEachKernel(t, func(t *testing.T, k kernel, number int) {
		p := newPod(t, k)
		from, to := number, policies
		if *onlyOne >= 0 {
			from, to = *onlyOne, *onlyOne+1
		}
		for i := from; i < to && !t.Failed(); i += len(kernels(t)) {
			d := dice{rand.New(rand.NewPCG(start, uint64(i)))}
			policy, packets := d.policy()
			if err := policy.Validate(); err != nil {
				t.Fatalf("policy %d: %v: %+v", i, err, policy)
			}
			p.program(t, policy.Ruleset(), rules.Families)
			for _, difference := range p.differences(t, packets) {
				t.Error(difference)
			}
			if t.Failed() {
				t.Errorf("repeat with -snapshot.seed=%d -snapshot.policy=%d: %+v", start, i, policy)
			}
		}
	})
}

// dice make random choices.
type dice struct{ *rand.Rand }

// oneIn is true once in n times.
func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }

func pick[T any](d dice, list []T) T { return list[d.IntN(len(list))] }

// some returns up to most of list, nothing in half of all cases.
func some[T any](d dice, most int, list []T) []T {
	if d.oneIn(2) {
		return nil
	}
	var out []T
	for _, i := range d.Perm(len(list))[:1+d.IntN(min(most, len(list)))] {
		out = append(out, list[i])
	}
	return out
}

// origin is where random entries were asked for.
const origin = "the dice"

var (
	// somePorts are the ports that policies name. None, and none beside one, is a port that the kernel chooses.
	somePorts = []uint16{1, 53, 80, 443, 8080, 9090, 15000, 15010, 15020, 15090, 15901, 15904, 65535}
	// manyPorts are more than one match of iptables holds.
	manyPorts = func() (out []uint16) {
		for port := uint16(7000); port < 7040; port++ {
			out = append(out, port)
		}
		return out
	}()
	// edges are the neighbours of what a match of iptables holds of manyPorts, when these stand alone.
	edges = []uint16{6999, 7000, 7014, 7015, 7029, 7030, 7039, 7040}

	someAddrs = []netip.Addr{
		netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("8.8.4.4"), netip.MustParseAddr("100.64.3.7"), netip.MustParseAddr("172.20.200.6"),
		netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("10.96.0.10"), nettest.OutsideIPv4, nettest.PodIPv4, netip.MustParseAddr("127.0.0.1"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2606:4700::1111"), netip.MustParseAddr("2001:db8:78::7"), netip.MustParseAddr("fd00:10:96::a"),
		nettest.OutsideIPv6, nettest.PodIPv6, netip.MustParseAddr("::1"),
	}
	ownAddrs = []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.6"), netip.IPv6Loopback(),
		nettest.PodIPv4, nettest.PodIPv6, nettest.Net1IPv4, nettest.Net1IPv6,
	}
	someLinks = []string{nettest.PodLink, nettest.Net1Link, nettest.GuestLink, "lo", "absent0"}
	someUsers = []uint32{0, 999, 1000, 1001, 4000000000}
)

func (d dice) ports(most int) []redirect.Port {
	numbers := some(d, most, somePorts)
	if d.oneIn(5) {
		numbers = append(numbers, manyPorts[:d.IntN(len(manyPorts)+1)]...)
	}
	var out []redirect.Port
	for _, n := range numbers {
		out = append(out, redirect.Port{Number: n, Origin: pick(d, []string{origin, "others"})})
	}
	return out
}

func (d dice) ranges(most int) []redirect.Range {
	var out []redirect.Range
	for _, a := range some(d, most, someAddrs) {
		prefix, err := a.Prefix(pick(d, []int{0, 1, 4, 8, 15, 16, 23, 24, 25, 30, 31, 32, a.BitLen(), a.BitLen(), a.BitLen() - 1}))
		if err != nil {
			panic(err)
		}
		out = append(out, redirect.Range{Prefix: prefix, Origin: pick(d, []string{origin, "others"})})
	}
	return out
}

func (d dice) interfaces(most int) []redirect.Interface {
	var out []redirect.Interface
	for _, name := range some(d, most, someLinks) {
		out = append(out, redirect.Interface{Name: name, Origin: origin})
	}
	return out
}

func (d dice) users(most int) []redirect.User {
	var out []redirect.User
	for _, uid := range some(d, most, someUsers) {
		out = append(out, redirect.User{UID: uid, Origin: fmt.Sprintf("user %d", uid)})
	}
	return out
}

// policy returns a random policy, and packets around its borders.
func (d dice) policy() (redirect.Policy, []nettest.Packet) {
	if d.oneIn(2) {
		policy := d.osm()
		return policy, d.packets(borders{
			ports:  slices.Concat(policy.Outbound.ExcludePorts, policy.Inbound.ExcludePorts),
			ranges: slices.Concat(policy.Outbound.ExcludeRanges, policy.Outbound.IncludeRanges),
			ids:    []uint32{policy.Proxy.UID},
			dns:    policy.LocalDNS.IsValid(),
		})
	}
	policy := d.istio()
	o, i := policy.Outbound, policy.Inbound
	return policy, d.packets(borders{
		ports:  slices.Concat(o.ExcludePorts, o.IncludePorts, i.ExcludePorts, i.IncludePorts),
		ranges: slices.Concat(o.ExcludeRanges, o.IncludeRanges),
		ids:    []uint32{policy.Proxy.UID, policy.Proxy.GID},
		dns:    policy.DNSCapture,
		guest:  len(policy.VirtualInterfaces) > 0,
	})
}

func (d dice) osm() redirect.OSM {
	policy := redirect.OSM{
		Chains: pick(d, []redirect.Chains{
			{Inbound: "PROXY_INBOUND", InboundRedirect: "PROXY_IN_REDIRECT", Outbound: "PROXY_OUTPUT", OutboundRedirect: "PROXY_REDIRECT"},
			{Inbound: "FSM_PROXY_INBOUND", InboundRedirect: "FSM_PROXY_IN_REDIRECT", Outbound: "FSM_PROXY_OUTBOUND", OutboundRedirect: "FSM_PROXY_OUT_REDIRECT"},
		}),
		Proxy:     redirect.Proxy{UID: pick(d, []uint32{1500, proxyID}), Inbound: 15003, Outbound: 15001, Admin: 15000, DNS: 5300},
		SelfCalls: d.oneIn(2),
		Outbound:  redirect.Outbound{ExcludePorts: d.ports(5), ExcludeRanges: d.ranges(5), ExcludeUsers: d.users(2)},
		Inbound:   redirect.Inbound{ProxyPorts: []uint16{15010, 15901, 15902, 15903}, ExcludePorts: d.ports(5)},
	}
	if policy.SelfCalls { // what only the later meshes have
		policy.Outbound.ExcludeInterfaces = d.interfaces(2)
		policy.Outbound.IncludeRanges = d.ranges(5)
		policy.Inbound.ExcludeInterfaces = d.interfaces(2)
		policy.PodIPs = some(d, 2, []netip.Addr{nettest.PodIPv4, nettest.PodIPv6})
		if d.oneIn(2) {
			policy.LocalDNS = netip.MustParseAddr("127.0.0.153")
		}
	}
	return policy
}

func (d dice) istio() redirect.Istio {
	policy := redirect.Istio{
		Proxy:             redirect.Proxy{UID: proxyID, GID: pick(d, []uint32{proxyID, 1003}), Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
		TProxy:            d.oneIn(3),
		Outbound:          redirect.IstioOutbound{ExcludeRanges: d.ranges(4), IncludePorts: d.ports(3), ExcludePorts: d.ports(4), ExcludeUsers: d.users(2)},
		Inbound:           redirect.IstioInbound{All: d.oneIn(2), ExcludePorts: d.ports(5)},
		ExcludeInterfaces: d.interfaces(2),
		DropInvalid:       d.oneIn(3),
		DNSCapture:        d.oneIn(2),
	}
	if policy.Outbound.All = d.oneIn(2); !policy.Outbound.All {
		policy.Outbound.IncludeRanges = d.ranges(5)
	}
	if !policy.Inbound.All {
		policy.Inbound.IncludePorts = d.ports(5)
	}
	// TPROXY's rules hand the answers to what a virtual machine sends to the pod itself.
	if !policy.TProxy && d.oneIn(4) {
		policy.VirtualInterfaces = []redirect.Interface{{Name: nettest.GuestLink, Origin: origin}}
	}
	return policy
}
