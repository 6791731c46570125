package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// datatype is how values are printed, and what the kernel and nft are told of a set of them.
type datatype struct {
	id       uint32 // nft's number, which the kernel keeps for it
	size     int    // bytes
	prefixes bool   // values have them, and neighbours are one range
	format   func([]byte) string
}

var (
	ipv4Addr = datatype{7, 4, true, formatAddr}
	ipv6Addr = datatype{8, 16, true, formatAddr}
	port     = datatype{13, 2, false, formatPort}
	mark     = datatype{19, 4, false, formatMark}
	state    = datatype{size: 4, format: formatStates}
	zone     = datatype{size: 2, format: formatNative}
	owner    = datatype{size: 4, format: formatNative}
	ifname   = datatype{size: unix.IFNAMSIZ, format: formatName}
	l4proto  = datatype{size: 1, format: func(b []byte) string { return nameOf(protocols, uint32(b[0])) }}
	nfproto  = datatype{size: 1, format: func(b []byte) string { return nameOf(families, uint32(b[0])) }}
)

// named is a number that nft has a name for.
type named struct {
	name   string
	number uint32
}

var (
	protocols = []named{{string(rules.TCP), unix.IPPROTO_TCP}, {string(rules.UDP), unix.IPPROTO_UDP}}
	families  = []named{{"ipv4", unix.NFPROTO_IPV4}, {"ipv6", unix.NFPROTO_IPV6}}
	// states are bits, in nft's order.
	states = []named{{"invalid", 1}, {"established", 2}, {"related", 4}, {"new", 8}, {"untracked", 64}}
)

func nameOf(list []named, number uint32) string {
	for _, n := range list {
		if n.number == number {
			return n.name
		}
	}
	return strconv.FormatUint(uint64(number), 10)
}

func numberOf(list []named, name string) uint32 {
	for _, n := range list {
		if n.name == name {
			return n.number
		}
	}
	panic(fmt.Sprintf("nftables: %q has no number", name))
}

func formatAddr(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

func formatPort(b []byte) string { return strconv.Itoa(int(binary.BigEndian.Uint16(b))) }

func formatMark(b []byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)) }

func formatName(b []byte) string { return `"` + string(bytes.TrimRight(b, "\x00")) + `"` }

// formatNative prints a number of the machine's byte order.
func formatNative(b []byte) string {
	if len(b) == 2 {
		return strconv.Itoa(int(binary.NativeEndian.Uint16(b)))
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
}

func formatStates(b []byte) string {
	var names []string
	rest := binary.NativeEndian.Uint32(b)
	for _, s := range states {
		if rest&s.number != 0 {
			names = append(names, s.name)
			rest &^= s.number
		}
	}
	if rest != 0 {
		names = append(names, fmt.Sprintf("0x%x", rest))
	}
	return strings.Join(names, ",")
}

// source is what an expression loads into a register, and the words that nft has for that.
type source struct {
	expression string
	key        uint32 // of a payload: header<<8 | offset
	words      string
	*datatype
}

var (
	metaMark    = source{"meta", unix.NFT_META_MARK, "meta mark", &mark}
	metaIifname = source{"meta", unix.NFT_META_IIFNAME, "iifname", &ifname}
	metaOifname = source{"meta", unix.NFT_META_OIFNAME, "oifname", &ifname}
	metaSkuid   = source{"meta", unix.NFT_META_SKUID, "meta skuid", &owner}
	metaSkgid   = source{"meta", unix.NFT_META_SKGID, "meta skgid", &owner}
	metaNfproto = source{"meta", unix.NFT_META_NFPROTO, "meta nfproto", &nfproto}
	metaL4proto = source{"meta", unix.NFT_META_L4PROTO, "meta l4proto", &l4proto}
	ctStates    = source{ct, unix.NFT_CT_STATE, "ct state", &state}
	ctMark      = source{ct, unix.NFT_CT_MARK, "ct mark", &mark}
	ctZone      = source{ct, unix.NFT_CT_ZONE, "ct zone", &zone}
	ipSaddr     = source{payload, network<<8 | 12, "ip saddr", &ipv4Addr}
	ipDaddr     = source{payload, network<<8 | 16, "ip daddr", &ipv4Addr}
	ip6Saddr    = source{payload, network<<8 | 8, "ip6 saddr", &ipv6Addr}
	ip6Daddr    = source{payload, network<<8 | 24, "ip6 daddr", &ipv6Addr}
	ipProtocol  = source{payload, network<<8 | 9, "ip protocol", &l4proto}
	ip6Nexthdr  = source{payload, network<<8 | 6, "ip6 nexthdr", &l4proto}
	thSport     = source{payload, transport << 8, "th sport", &port}
	thDport     = source{payload, transport<<8 | 2, "th dport", &port}

	// sources are all of them, for whoever reads; detour's own rules have no ipProtocol and no ip6Nexthdr.
	sources = []*source{
		&metaMark, &metaIifname, &metaOifname, &metaSkuid, &metaSkgid, &metaNfproto, &metaL4proto,
		&ctStates, &ctMark, &ctZone, &ipSaddr, &ipDaddr, &ip6Saddr, &ip6Daddr, &ipProtocol, &ip6Nexthdr, &thSport, &thDport,
	}
)

// Expressions that need telling apart.
const (
	payload = "payload"
	ct      = "ct"
)

// The headers that a payload is counted from (NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER).
const (
	network   = 1
	transport = 2
)

// findSource returns nil for what detour never asks for.
func findSource(expression string, key uint32) *source {
	for _, s := range sources {
		if s.expression == expression && s.key == key {
			return s
		}
	}
	return nil
}
