package xtables

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// comparison is a condition: a register against a value.
type comparison struct {
	*register
	op   uint32
	with blob
}

func (c comparison) not() bool { return c.op == unix.NFT_CMP_NEQ }

// equality reports whether all of the register is to be equal, or not equal, to a value of this size.
func (c comparison) equality(size int) bool {
	whole := (c.from != "payload" || c.size == size) && (c.mask == nil || len(c.mask) == size)
	return whole && c.op <= unix.NFT_CMP_NEQ && len(c.with) == size
}

func (r *reader) compare(f *netlink.Fields) {
	c := comparison{r.register(f.Number(unix.NFTA_CMP_SREG)), f.Number(unix.NFTA_CMP_OP), nft.Value(f[unix.NFTA_CMP_DATA])}
	known := false
	switch {
	case c.from == "meta":
		known = r.compareMeta(c)
	case c.from == "payload" && c.base == networkHeader:
		known = r.compareNetwork(c)
	case c.from == "payload" && c.base == transportHeader && !r.notProtocol:
		known = r.compareTransport(c)
	}
	if !known {
		r.doubt(c.words())
	}
}

// words names what is compared.
func (c comparison) words() string {
	if c.from == "" {
		return "cmp"
	}
	return c.from
}

func (r *reader) compareMeta(c comparison) bool {
	switch c.key {
	case unix.NFT_META_L4PROTO:
		return r.compareProtocol(c)
	case unix.NFT_META_IIFNAME:
		return r.in.compare(c)
	case unix.NFT_META_OIFNAME:
		return r.out.compare(c)
	case unix.NFT_META_MARK:
		return c.equality(4) && r.addMark(c)
	case unix.NFT_META_PKTTYPE:
		return c.equality(1) && c.mask == nil && r.addPkttype(c)
	}
	return false
}

func (r *reader) compareProtocol(c comparison) bool {
	if !c.equality(1) || c.mask != nil || c.with[0] == 0 {
		return false
	}
	if r.protocol != 0 {
		return r.protocol == c.with[0] && r.notProtocol == c.not()
	}
	r.protocol, r.notProtocol = c.with[0], c.not()
	return true
}

// impossible is the device that iptables-nft compares with if the rule says `! -i +`.
const impossible = "INVAL/D"

// compare reads the name of a device. Without a NUL at its end it stands for all that begin so.
func (d *device) compare(c comparison) bool {
	if d.name != "" || c.mask != nil || c.op > unix.NFT_CMP_NEQ || len(c.with) == 0 || len(c.with) > unix.IFNAMSIZ {
		return false
	}
	name := c.with.string(0, len(c.with))
	switch {
	case name == "":
		return false
	case name == impossible && !c.not():
		*d = device{"+", true}
		return true
	case c.with[len(c.with)-1] != 0:
		name += "+"
	}
	*d = device{name, c.not()}
	return true
}

// addMark makes struct xt_mark_mtinfo1.
func (r *reader) addMark(c comparison) bool {
	mask := c.mask
	if mask == nil {
		mask = blob{0xff, 0xff, 0xff, 0xff}
	}
	r.matches = append(r.matches, extension{"mark", 1, append(append(bytes.Clone(c.with), mask...), oneIf(c.not()))})
	return true
}

// addPkttype makes struct xt_pkttype_info.
func (r *reader) addPkttype(c comparison) bool {
	info := make(blob, 8)
	info.put(0, uint32(c.with[0]))
	info.put(4, uint32(oneIf(c.not())))
	r.match("pkttype", info)
	return true
}

func oneIf(condition bool) byte {
	if condition {
		return 1
	}
	return 0
}

// header is where the network header has its fields.
type header struct{ source, dest, protocol, ttl, fragment uint32 }

var headers = map[rules.Family]header{
	rules.IPv4: {source: 12, dest: 16, protocol: 9, ttl: 8, fragment: 6},
	rules.IPv6: {source: 8, dest: 24, protocol: 6, ttl: 7, fragment: none},
}

const none = 1 << 31

func (r *reader) compareNetwork(c comparison) bool {
	switch h := headers[r.family]; c.key {
	case h.source:
		return r.source.compare(c, r.family)
	case h.dest:
		return r.dest.compare(c, r.family)
	case h.protocol:
		return r.compareProtocol(c)
	case h.ttl:
		return r.compareTTL(c)
	case h.fragment:
		return r.compareFragment(c)
	}
	return false
}

// compare reads an address. One of which only a part is loaded is a prefix.
func (n *network) compare(c comparison, f rules.Family) bool {
	size := 4
	if f == rules.IPv6 {
		size = 16
	}
	if n.addr != nil || c.size > size || c.size == 0 || !c.equality(c.size) {
		return false
	}
	mask := c.mask
	if mask == nil {
		mask = bytes.Repeat([]byte{0xff}, c.size)
	}
	padding := make([]byte, size-c.size)
	*n = network{append(bytes.Clone(c.with), padding...), append(bytes.Clone(mask), padding...), c.not()}
	return true
}

// compareTTL makes struct ipt_ttl_info or ip6t_hl_info.
func (r *reader) compareTTL(c comparison) bool {
	if len(c.with) != 1 || c.size != 1 || c.mask != nil {
		return false
	}
	value := c.with[0]
	modes := map[uint32]byte{
		unix.NFT_CMP_EQ: 0, unix.NFT_CMP_NEQ: 1, unix.NFT_CMP_LT: 2, unix.NFT_CMP_LTE: 2, unix.NFT_CMP_GT: 3, unix.NFT_CMP_GTE: 3,
	}
	mode, ok := modes[c.op]
	switch {
	case !ok, c.op == unix.NFT_CMP_LTE && value == 255, c.op == unix.NFT_CMP_GTE && value == 0:
		return false
	case c.op == unix.NFT_CMP_LTE:
		value++
	case c.op == unix.NFT_CMP_GTE:
		value--
	}
	name := "ttl"
	if r.family == rules.IPv6 {
		name = "hl"
	}
	r.match(name, blob{mode, value})
	return true
}

// compareFragment reads whether there is a fragment offset.
func (r *reader) compareFragment(c comparison) bool {
	if !c.equality(2) || string(c.mask) != "\x1f\xff" || string(c.with) != "\x00\x00" || r.fragment {
		return false
	}
	r.fragment, r.notFragment = true, !c.not()
	return true
}

func (r *reader) compareTransport(c comparison) bool {
	switch {
	case r.protocol == unix.IPPROTO_TCP && c.key == 13:
		return r.compareTCPFlags(c)
	case r.protocol == unix.IPPROTO_TCP, r.protocol == unix.IPPROTO_UDP:
		return c.mask == nil && r.comparePorts(c)
	case r.protocol == unix.IPPROTO_ICMP && r.family == rules.IPv4, r.protocol == unix.IPPROTO_ICMPV6 && r.family == rules.IPv6:
		return c.mask == nil && r.compareICMP(c)
	}
	return false
}

// compareICMP makes struct ipt_icmp or ip6t_icmp.
func (r *reader) compareICMP(c comparison) bool {
	if c.key != 0 || !c.equality(c.size) || c.size < 1 || c.size > 2 {
		return false
	}
	name := "icmp"
	if r.family == rules.IPv6 {
		name = "icmp6"
	}
	info := blob{c.with[0], 0, 0xff, oneIf(c.not())}
	if c.size == 2 {
		info[1], info[2] = c.with[1], c.with[1]
	}
	r.match(name, info)
	return true
}

// transport returns struct xt_tcp or xt_udp of the rule, which it adds if it isn't there.
func (r *reader) transport() transport {
	name := map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[r.protocol]
	for _, m := range r.matches {
		if m.name == name {
			return transport{m.info, name}
		}
	}
	info := append(bytes.Repeat([]byte{0, 0, 0xff, 0xff}, 2), 0, 0, 0, 0)
	r.match(name, info)
	return transport{info, name}
}

// transport is struct xt_tcp or xt_udp.
type transport struct {
	blob
	name string
}

// inverted are its flags.
func (t transport) inverted() *byte { return &t.blob[map[string]int{"tcp": 11, "udp": 8}[t.name]] }

func (r *reader) compareTCPFlags(c comparison) bool {
	t := r.transport()
	if !c.equality(1) || t.blob[9] != 0 {
		return false
	}
	t.blob[9], t.blob[10] = 0xff, c.with[0]
	if c.mask != nil {
		t.blob[9] = c.mask[0]
	}
	if c.not() {
		*t.inverted() |= 4
	}
	return true
}

// comparePorts reads the source or destination port, or both.
func (r *reader) comparePorts(c comparison) bool {
	if len(c.with) != c.size {
		return false
	}
	switch {
	case c.size == 4 && c.key == 0 && c.op == unix.NFT_CMP_EQ:
		source, dest := binary.BigEndian.Uint16(c.with), binary.BigEndian.Uint16(c.with[2:])
		return r.ports(0, c.op, source, source) && r.ports(2, c.op, dest, dest)
	case c.size == 2 && (c.key == 0 || c.key == 2):
		port := binary.BigEndian.Uint16(c.with)
		return r.ports(c.key, c.op, port, port)
	}
	return false
}

// ports narrows the range of the source port, at offset 0, or of the destination port, at offset 2.
func (r *reader) ports(offset, op uint32, low, high uint16) bool {
	t := r.transport()
	at, bit := int(2*offset), byte(1+offset/2)
	oldLow, oldHigh := t.u16(at), t.u16(at+2)
	switch {
	case *t.inverted()&bit != 0:
		return false
	case op == unix.NFT_CMP_LT && low > 0:
		low, high = uint16(oldLow), low-1
	case op == unix.NFT_CMP_LTE:
		low = uint16(oldLow)
	case op == unix.NFT_CMP_GT && high < 0xffff:
		low, high = high+1, uint16(oldHigh)
	case op == unix.NFT_CMP_GTE:
		high = uint16(oldHigh)
	case op > unix.NFT_CMP_NEQ, oldLow != 0, oldHigh != 0xffff:
		return false
	case op == unix.NFT_CMP_NEQ:
		*t.inverted() |= bit
	}
	if uint32(low) < oldLow || uint32(high) > oldHigh || low > high {
		return false
	}
	t.put16(at, low)
	t.put16(at+2, high)
	return true
}

// inRange reads a range of ports.
func (r *reader) inRange(f *netlink.Fields) {
	o := r.register(f.Number(unix.NFTA_RANGE_SREG))
	from, to := nft.Value(f[unix.NFTA_RANGE_FROM_DATA]), nft.Value(f[unix.NFTA_RANGE_TO_DATA])
	hasPorts := r.protocol == unix.IPPROTO_TCP || r.protocol == unix.IPPROTO_UDP
	isPort := o.from == "payload" && o.base == transportHeader && o.size == 2 && o.mask == nil && (o.key == 0 || o.key == 2)
	if !isPort || !hasPorts || r.notProtocol || len(from) != 2 || len(to) != 2 ||
		!r.ports(o.key, f.Number(unix.NFTA_RANGE_OP), binary.BigEndian.Uint16(from), binary.BigEndian.Uint16(to)) {
		r.doubt("range")
	}
}
