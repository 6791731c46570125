package routing

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// fields are the attributes of a message by their type. Numbers are in the machine's byte order.
type fields map[uint16][]byte

func parse(b []byte) *fields {
	f := fields{}
	for a := range netlink.Attributes(b) {
		f[a.Kind] = a.Data
	}
	return &f
}

func (f *fields) has(kind uint16) bool { return (*f)[kind] != nil }

// number is 0 if there is none.
func (f *fields) number(kind uint16) uint32 {
	switch b := (*f)[kind]; len(b) {
	case 1:
		return uint32(b[0])
	case 4:
		return binary.NativeEndian.Uint32(b)
	}
	return 0
}

func (f *fields) text(kind uint16) string { return unix.ByteSliceToString((*f)[kind]) }

// addr is "" if there is none.
func (f *fields) addr(kind uint16) string {
	a, ok := netip.AddrFromSlice((*f)[kind])
	if !ok {
		return ""
	}
	return a.String()
}

// names are the words for numbers; a number without a word stays a number.
type names map[uint32]string

func (n names) of(number uint32) string {
	if word, ok := n[number]; ok {
		return word
	}
	return strconv.FormatUint(uint64(number), 10)
}

var (
	routeTypes = names{
		unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast",
		unix.RTN_MULTICAST: "multicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
		unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw", unix.RTN_NAT: "nat",
	}
	tables      = names{unix.RT_TABLE_DEFAULT: "default", unix.RT_TABLE_MAIN: "main", unix.RT_TABLE_LOCAL: "local"}
	scopes      = names{0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
	preferences = names{0: "medium", 1: "high", 3: "low"}
	states      = names{0: "UNKNOWN", 1: "NOTPRESENT", 2: "DOWN", 3: "LOWERLAYERDOWN", 4: "TESTING", 5: "DORMANT", 6: "UP"}
	families    = names{unix.AF_INET: "inet", unix.AF_INET6: "inet6"}
	protocols   = names{
		unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_IGMP: "igmp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_DCCP: "dccp",
		unix.IPPROTO_GRE: "gre", unix.IPPROTO_ESP: "esp", unix.IPPROTO_AH: "ah", unix.IPPROTO_ICMPV6: "ipv6-icmp", 89: "ospf",
		unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_UDPLITE: "udplite",
	}
)

// flag is a bit and ip's word for it.
type flag struct {
	bit  uint32
	word string
}

func wordsOf(list []flag, bits uint32) []string {
	words := []string{}
	for _, f := range list {
		if bits&f.bit != 0 {
			words = append(words, f.word)
		}
	}
	return words
}
