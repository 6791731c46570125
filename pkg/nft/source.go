package nft

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

// Datatype says how values are printed, and what the kernel and nft are told about a set of them.
type Datatype struct {
	ID       uint32 // nft's number, which the kernel stores
	Size     int    // bytes
	Prefixes bool   // values have prefixes, and neighbours join into one range
	Format   func([]byte) string
}

// The datatypes that sets may have, and others.
var (
	IPv4Addr = Datatype{7, 4, true, formatAddr}
	IPv6Addr = Datatype{8, 16, true, formatAddr}
	Port     = Datatype{13, 2, false, formatPort}
	Mark     = Datatype{19, 4, false, formatMark}
	state    = Datatype{Size: 4, Format: formatStates}
	zone     = Datatype{Size: 2, Format: formatNative}
	owner    = Datatype{Size: 4, Format: formatNative}
	ifname   = Datatype{Size: unix.IFNAMSIZ, Format: formatName}
	l4proto  = Datatype{Size: 1, Format: func(b []byte) string { return NameOf(Protocols, uint32(b[0])) }}
	nfproto  = Datatype{Size: 1, Format: func(b []byte) string { return NameOf(families, uint32(b[0])) }}
)

// Named is a number with nft's name for it.
type Named struct {
	name   string
	number uint32
}

// What nft has names for.
var (
	Protocols = []Named{{string(rules.TCP), unix.IPPROTO_TCP}, {string(rules.UDP), unix.IPPROTO_UDP}}
	families  = []Named{{"ipv4", unix.NFPROTO_IPV4}, {"ipv6", unix.NFPROTO_IPV6}}
	// States are bits, in nft's order.
	States = []Named{{"invalid", 1}, {"established", 2}, {"related", 4}, {"new", 8}, {"untracked", 64}}
)

// NameOf returns the number itself if it has no name.
func NameOf(list []Named, number uint32) string {
	for _, n := range list {
		if n.number == number {
			return n.name
		}
	}
	return strconv.FormatUint(uint64(number), 10)
}

// NumberOf panics if there is no such name.
func NumberOf(list []Named, name string) uint32 {
	for _, n := range list {
		if n.name == name {
			return n.number
		}
	}
	panic(fmt.Sprintf("nft: %q has no number", name))
}

func formatAddr(b []byte) string {
	addr, _ := netip.AddrFromSlice(b)
	return addr.String()
}

func formatPort(b []byte) string { return strconv.Itoa(int(binary.BigEndian.Uint16(b))) }

func formatMark(b []byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)) }

func formatName(b []byte) string { return `"` + string(bytes.TrimRight(b, "\x00")) + `"` }

// formatNative prints a number in the machine's byte order.
func formatNative(b []byte) string {
	if len(b) == 2 {
		return strconv.Itoa(int(binary.NativeEndian.Uint16(b)))
	}
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
}

func formatStates(b []byte) string {
	var names []string
	rest := binary.NativeEndian.Uint32(b)
	for _, s := range States {
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

// Source is what an expression loads into a register, and nft's words for it.
type Source struct {
	Expression string
	Key        uint32 // of a payload: header<<8 | offset
	words      string
	*Datatype
}

// The sources that detour's rules have.
var (
	MetaMark    = Source{"meta", unix.NFT_META_MARK, "meta mark", &Mark}
	MetaIifname = Source{"meta", unix.NFT_META_IIFNAME, "iifname", &ifname}
	MetaOifname = Source{"meta", unix.NFT_META_OIFNAME, "oifname", &ifname}
	MetaSkuid   = Source{"meta", unix.NFT_META_SKUID, "meta skuid", &owner}
	MetaSkgid   = Source{"meta", unix.NFT_META_SKGID, "meta skgid", &owner}
	MetaNfproto = Source{"meta", unix.NFT_META_NFPROTO, "meta nfproto", &nfproto}
	MetaL4proto = Source{"meta", unix.NFT_META_L4PROTO, "meta l4proto", &l4proto}
	CTStates    = Source{CT, unix.NFT_CT_STATE, "ct state", &state}
	CTMark      = Source{CT, unix.NFT_CT_MARK, "ct mark", &Mark}
	CTZone      = Source{CT, unix.NFT_CT_ZONE, "ct zone", &zone}
	IPSaddr     = Source{Payload, network<<8 | 12, "ip saddr", &IPv4Addr}
	IPDaddr     = Source{Payload, network<<8 | 16, "ip daddr", &IPv4Addr}
	IP6Saddr    = Source{Payload, network<<8 | 8, "ip6 saddr", &IPv6Addr}
	IP6Daddr    = Source{Payload, network<<8 | 24, "ip6 daddr", &IPv6Addr}
	ipProtocol  = Source{Payload, network<<8 | 9, "ip protocol", &l4proto}
	ip6Nexthdr  = Source{Payload, network<<8 | 6, "ip6 nexthdr", &l4proto}
	ThSport     = Source{Payload, transport << 8, "th sport", &Port}
	ThDport     = Source{Payload, transport<<8 | 2, "th dport", &Port}

	// sources are all that are printed. detour's own rules have no ipProtocol and no ip6Nexthdr.
	sources = []*Source{
		&MetaMark, &MetaIifname, &MetaOifname, &MetaSkuid, &MetaSkgid, &MetaNfproto, &MetaL4proto,
		&CTStates, &CTMark, &CTZone, &IPSaddr, &IPDaddr, &IP6Saddr, &IP6Daddr, &ipProtocol, &ip6Nexthdr, &ThSport, &ThDport,
	}
)

// Expressions that are treated specially.
const (
	Payload = "payload"
	CT      = "ct"
)

// The headers that a payload's offset refers to (NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER).
const (
	network   = 1
	transport = 2
)

// findSource returns nil for what detour doesn't know.
func findSource(expression string, key uint32) *Source {
	for _, s := range sources {
		if s.Expression == expression && s.Key == key {
			return s
		}
	}
	return nil
}

// TypeOf returns the datatype of a set by nft's number; nil if detour doesn't know it.
func TypeOf(id uint32) *Datatype {
	for _, s := range sources {
		if s.ID == id && id != 0 {
			return s.Datatype
		}
	}
	return nil
}
