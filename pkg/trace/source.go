package trace

import (
	"math/bits"
	"net/netip"
	"slices"
)

var scopes = map[Scope]int{ScopeSite: 200, ScopeLink: 253, ScopeHost: 254}

// source4 is the IPv4 source that the kernel chooses (inet_select_addr): the first primary address of the link of a wide enough
// scope, rather one in whose network the gateway is. If the link has none, it is the first one of any link.
func (r *Routing) source4(dev string, via netip.Addr, scope Scope) netip.Addr {
	var first netip.Addr
	for _, a := range r.addrs(dev) {
		if !a.Addr().Is4() || a.NotSource || scopes[a.Scope] > scopes[scope] {
			continue
		}
		if !via.Is4() || a.Network().Contains(via) {
			return a.Addr()
		}
		if !first.IsValid() {
			first = a.Addr()
		}
	}
	if first.IsValid() {
		return first
	}
	for _, l := range r.Links {
		for _, a := range l.Addrs {
			if a.Addr().Is4() && !a.NotSource && a.Scope != ScopeLink && scopes[a.Scope] <= scopes[scope] {
				return a.Addr()
			}
		}
	}
	return netip.Addr{}
}

// Network is the network that the address is in: that of the other end of a point-to-point link.
func (a LinkAddr) Network() netip.Prefix {
	if a.Peer.IsValid() {
		return netip.PrefixFrom(a.Peer, a.Bits())
	}
	return a.Prefix
}

func (r *Routing) addrs(dev string) []LinkAddr {
	i := slices.IndexFunc(r.Links, func(l Link) bool { return l.Name == dev })
	if i < 0 {
		return nil
	}
	return r.Links[i].Addrs
}

// source6 is the IPv6 source that the kernel chooses by RFC 6724: the destination itself, a fitting scope, not deprecated, on the
// outgoing link, of the same label, with the longest common prefix. The rules about home addresses, temporary addresses and the
// settings of links are left out.
func (r *Routing) source6(dev string, dst netip.Addr) netip.Addr {
	var best netip.Addr
	var bestRank []int
	for _, l := range r.Links {
		if l.Name != dev && linkOnly(dst) {
			continue
		}
		for _, a := range l.Addrs {
			if a.Addr().Is4() || a.NotSource {
				continue
			}
			if rank := rank6(a, l.Name == dev, dst); !best.IsValid() || slices.Compare(rank, bestRank) > 0 {
				best, bestRank = a.Addr(), rank
			}
		}
	}
	return best
}

// rank6 has one number for each rule of RFC 6724; the higher is the better.
func rank6(a LinkAddr, outgoing bool, dst netip.Addr) []int {
	src := a.Addr()
	scope := scope6(src)
	if scope < scope6(dst) { // too narrow: rather the widest
		scope -= 1000
	} else {
		scope = -scope
	}
	return []int{
		truth(src == dst), scope, truth(!a.Deprecated), truth(outgoing), truth(label6(src) == label6(dst)), min(commonBits(src, dst), a.Bits()),
	}
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// scope6 is the scope of an address as multicast addresses have it: 2 link, 5 site, 14 global.
func scope6(a netip.Addr) int {
	switch {
	case a.IsMulticast():
		return int(a.As16()[1] & 15)
	case a.IsLinkLocalUnicast() || a.IsLoopback():
		return 2
	}
	return 14
}

// labels6 are the kernel's default labels (RFC 6724), the longest prefix first.
var labels6 = []struct {
	prefix netip.Prefix
	label  int
}{
	{netip.MustParsePrefix("::1/128"), 0},
	{netip.MustParsePrefix("::/96"), 3},
	{netip.MustParsePrefix("2001::/32"), 6},
	{netip.MustParsePrefix("2001:10::/28"), 7},
	{netip.MustParsePrefix("3ffe::/16"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
	{netip.MustParsePrefix("fec0::/10"), 11},
	{netip.MustParsePrefix("fc00::/7"), 5},
}

func label6(a netip.Addr) int {
	for _, l := range labels6 {
		if l.prefix.Contains(a) {
			return l.label
		}
	}
	return 1
}

// commonBits is how many bits two addresses begin with in common.
func commonBits(a, b netip.Addr) int {
	x, y := a.As16(), b.As16()
	n := 0
	for i := range x {
		same := bits.LeadingZeros8(x[i] ^ y[i])
		n += same
		if same < 8 {
			break
		}
	}
	return n
}
