package snapshot

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
)

// borders are what a policy tells packets apart by.
type borders struct {
	ports      []redirect.Port
	ranges     []redirect.Range
	ids        []uint32 // the proxy's users and groups
	dns, guest bool
}

// packets are random packets near the borders.
func (d dice) packets(b borders) []nettest.Packet {
	var out []nettest.Packet
	for len(out) < packetsOf {
		out = append(out, d.packet(b))
	}
	return out
}

func (d dice) packet(b borders) nettest.Packet {
	port := d.port(b)
	switch {
	case d.oneIn(4):
		p := nettest.Packet{Direction: nettest.In, Families: nettest.IPv4 << d.IntN(2), Dst: netip.AddrPortFrom(netip.Addr{}, port)}
		if d.oneIn(4) {
			p.Via = nettest.Net1Link
		}
		return p
	case b.guest && d.oneIn(4):
		dst := d.addr(b)
		if within(dst, notForGuests) {
			dst = pick(d, someAddrs[:3])
		}
		return nettest.Packet{Direction: nettest.Guest, Families: familiesOf(dst), Dst: netip.AddrPortFrom(dst, port)}
	}
	p := nettest.Packet{Direction: nettest.Out, UID: d.id(b), GID: d.id(b)}
	dst := d.addr(b)
	if d.oneIn(4) {
		dst = pick(d, ownAddrs)
		if dst.Is4() && d.oneIn(4) {
			p.Src = netip.MustParseAddr("127.0.0.6")
		}
	}
	if b.dns && d.oneIn(3) {
		port, p.Protocol = 53, nettest.Protocol(d.IntN(2))
		if d.oneIn(3) {
			dst, p.Src = netip.MustParseAddr("127.0.0.153"), netip.Addr{}
		}
	}
	p.Dst, p.Families = netip.AddrPortFrom(dst, port), familiesOf(dst)
	return p
}

func familiesOf(a netip.Addr) nettest.Families {
	if a.Is4() {
		return nettest.IPv4
	}
	return nettest.IPv6
}

// port is one that the policy names, or one beside it.
func (d dice) port(b borders) uint16 {
	if d.oneIn(6) {
		return pick(d, slices.Concat(somePorts, edges, proxyPorts))
	}
	port := pick(d, somePorts)
	if len(b.ports) > 0 {
		port = pick(d, b.ports).Number
	}
	if port > manyPorts[0] && port <= manyPorts[len(manyPorts)-1] {
		return pick(d, edges)
	}
	port += uint16(d.IntN(3)) - 1
	return max(port, 1)
}

// id is one of the proxy's users or groups, or one beside it, or another.
func (d dice) id(b borders) uint32 {
	if d.oneIn(2) {
		return pick(d, someUsers)
	}
	id := pick(d, b.ids)
	if d.oneIn(3) {
		id += uint32(d.IntN(3)) - 1
	}
	return id
}

// addr is an address at the border of one of the policy's ranges, or one within, or another.
func (d dice) addr(b borders) netip.Addr {
	for range 20 {
		if len(b.ranges) == 0 || d.oneIn(4) {
			break
		}
		r := pick(d, b.ranges).Prefix
		candidates := []netip.Addr{r.Addr(), r.Addr().Prev(), last(r), last(r).Next(), d.within(r)}
		if a := pick(d, candidates); canBeDialed(a) {
			return a
		}
	}
	for {
		if a := pick(d, someAddrs); canBeDialed(a) {
			return a
		}
	}
}

func last(r netip.Prefix) netip.Addr {
	bytes := r.Addr().AsSlice()
	for i := r.Bits(); i < len(bytes)*8; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

func (d dice) within(r netip.Prefix) netip.Addr {
	bytes := r.Addr().AsSlice()
	for i := r.Bits(); i < len(bytes)*8; i++ {
		if d.oneIn(2) {
			bytes[i/8] |= 0x80 >> (i % 8)
		}
	}
	a, _ := netip.AddrFromSlice(bytes)
	return a
}

// nowhere are ranges in which nettest has nobody but those that it names, or nobody can be.
var nowhere = prefixes("0.0.0.0/8 224.0.0.0/3 127.0.0.0/32 127.255.255.255/32 10.77.0.0/24 10.78.0.0/24 10.79.0.0/24 ::/128 ::ffff:0:0/96 " +
	"fe80::/10 ff00::/8 fd77::/64 fd78::/64 fd79::/64")

// notForGuests are ranges that the guest can't dial: loopback is its own, and it gets no answer from IPv6 addresses beside it.
var notForGuests = prefixes("127.0.0.0/8 ::/96")

func canBeDialed(a netip.Addr) bool {
	switch a {
	case nettest.PodIPv4, nettest.PodIPv6, nettest.OutsideIPv4, nettest.OutsideIPv6, nettest.Net1IPv4, nettest.Net1IPv6:
		return true
	}
	return a.IsValid() && !within(a, nowhere)
}

func prefixes(text string) (all []netip.Prefix) {
	for word := range strings.FieldsSeq(text) {
		all = append(all, netip.MustParsePrefix(word))
	}
	return all
}

func within(a netip.Addr, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}
