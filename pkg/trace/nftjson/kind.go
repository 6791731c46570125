package nftjson

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// kind is the type of a value: how nft writes it and what the walk knows it as.
type kind struct {
	names   map[string]uint64
	bits    bool   // a value may have several names
	numeric bool   // the walk has it as a number
	address bool   // the walk has it as an address
	device  bool   // the walk has it as an interface's name
	format  string // of numbers in nft's language, "%d" if empty
	quoted  bool   // nft quotes its strings
}

// The kinds. A value of kind other is unknown to a walk; so is one of the kinds that only say how nft writes it.
var (
	other    = &kind{}
	hex      = &kind{format: "0x%x"}
	quoted   = &kind{quoted: true}
	index    = &kind{quoted: true, format: "unquoted"}
	seconds  = &kind{format: "duration"}
	labels   = &kind{bits: true}
	number   = &kind{numeric: true}
	mark     = &kind{numeric: true, format: "0x%08x"}
	address  = &kind{address: true}
	ifname   = &kind{device: true, quoted: true}
	ifindex  = &kind{device: true, quoted: true, format: "unquoted"}
	protocol = &kind{numeric: true, names: map[string]uint64{
		"ip": 0, "hopopt": 0, "icmp": 1, "igmp": 2, "ggp": 3, "ipencap": 4, "ipip": 4, "st": 5, "tcp": 6, "egp": 8, "igp": 9, "pup": 12, "udp": 17,
		"hmp": 20, "xns-idp": 22, "rdp": 27, "iso-tp4": 29, "dccp": 33, "xtp": 36, "ddp": 37, "idpr-cmtp": 38, "ipv6": 41, "ipv6-route": 43,
		"ipv6-frag": 44, "idrp": 45, "rsvp": 46, "gre": 47, "esp": 50, "ipsec-esp": 50, "ah": 51, "ipsec-ah": 51, "skip": 57, "ipv6-icmp": 58,
		"icmpv6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "rspf": 73, "vmtp": 81, "eigrp": 88, "ospf": 89, "ax.25": 93, "etherip": 97,
		"encap": 98, "pim": 103, "comp": 108, "ipcomp": 108, "vrrp": 112, "l2tp": 115, "isis": 124, "sctp": 132, "fc": 133,
		"mobility-header": 135, "udplite": 136, "mpls-in-ip": 137, "manet": 138, "hip": 139, "shim6": 140, "wesp": 141, "rohc": 142,
	}}
	family = &kind{numeric: true, names: map[string]uint64{"ipv4": 2, "ipv6": 10}}
	// The walk knows an Ethernet type as the family of the packet, which is IPv4 or IPv6.
	etherType = &kind{names: map[string]uint64{
		"ip": 2, "ip6": 10, "arp": notIP, "vlan": notIP, "8021q": notIP, "8021ad": notIP,
	}}
	ctState = &kind{numeric: true, bits: true, names: map[string]uint64{
		"invalid": trace.CTInvalid, "established": trace.CTEstablished, "related": trace.CTRelated, "new": trace.CTNew,
		"untracked": trace.CTUntracked,
	}}
	ctStatus = &kind{numeric: true, bits: true, names: map[string]uint64{
		"expected": 1, "seen-reply": trace.StatusSeenReply, "assured": 4, "confirmed": trace.StatusConfirmed, "snat": trace.StatusSNAT,
		"dnat": trace.StatusDNAT, "dying": 0x200,
	}}
	ctDirection = &kind{numeric: true, names: map[string]uint64{"original": 0, "reply": 1}}
	tcpFlags    = &kind{numeric: true, bits: true, format: "0x%x", names: map[string]uint64{
		"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128,
	}}
	icmpType = &kind{numeric: true, names: map[string]uint64{
		"echo-reply": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5, "echo-request": 8, "router-advertisement": 9,
		"router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14,
		"info-request": 15, "info-reply": 16, "address-mask-request": 17, "address-mask-reply": 18,
	}}
	icmpCode = &kind{numeric: true, names: map[string]uint64{
		"net-unreachable": 0, "host-unreachable": 1, "prot-unreachable": 2, "port-unreachable": 3, "frag-needed": 4, "net-prohibited": 9,
		"host-prohibited": 10, "admin-prohibited": 13,
	}}
	icmp6Type = &kind{numeric: true, names: map[string]uint64{
		"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo-request": 128, "echo-reply": 129,
		"mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132, "mld-listener-reduction": 132,
		"nd-router-solicit": 133, "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
		"router-renumbering": 138, "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142, "mld2-listener-report": 143,
	}}
	icmp6Code = &kind{numeric: true, names: map[string]uint64{
		"no-route": 0, "admin-prohibited": 1, "addr-unreachable": 3, "port-unreachable": 4, "policy-fail": 5, "reject-route": 6,
	}}
	routeType = &kind{numeric: true, names: trace.AddrTypes}
)

// notIP is no family that a walk's packet has.
const notIP = 1 << 16

// kindsOfTypes are the kinds of the types that a set names.
var kindsOfTypes = map[string]*kind{
	"ipv4_addr": address, "ipv6_addr": address, "inet_service": number, "inet_proto": protocol, "mark": mark, "ifname": ifname,
	"iface_index": ifindex, "ct_state": ctState, "ct_status": ctStatus, "ct_dir": ctDirection, "icmp_type": icmpType,
	"icmpv6_type": icmp6Type, "icmp_code": icmpCode, "icmpv6_code": icmp6Code, "tcp_flag": tcpFlags, "fib_addrtype": routeType,
	"nf_proto": family, "ether_type": etherType, "uid": number, "gid": number, "integer": number,
}

// value returns the value of a constant; ok is false if the walk can't know it.
func (k *kind) value(x any) (v trace.Value, ok bool) {
	switch x := x.(type) {
	case json.Number:
		n, err := strconv.ParseUint(string(x), 10, 64)
		return trace.Value{Num: n}, k.numeric && err == nil
	case string:
		return k.named(x)
	}
	if flags, isList := flagsOf(x); isList && k.bits {
		for _, flag := range flags {
			one, known := k.value(flag)
			if !known {
				return v, false
			}
			v.Num |= one.Num
		}
		return v, true
	}
	return v, false
}

func (k *kind) named(s string) (v trace.Value, ok bool) {
	switch {
	case k.address:
		a, err := netip.ParseAddr(s)
		return trace.Value{Addr: a}, err == nil
	case k.device:
		_, notIndex := strconv.Atoi(s)
		s = strings.ReplaceAll(s, `\*`, "*")
		return trace.Name(s), s != "" && (k == ifname || notIndex != nil)
	}
	n, ok := k.names[s]
	return trace.Value{Num: n}, ok
}

// ranges is value for what may be a prefix, a range or a wildcard too.
func (k *kind) ranges(x any) (r trace.Range, ok bool) {
	switch key, arg := single(x); key {
	case "prefix":
		return k.prefix(arg)
	case "range":
		ends, _ := arg.([]any)
		if len(ends) != 2 {
			return r, false
		}
		lo, known := k.value(ends[0])
		hi, alsoKnown := k.value(ends[1])
		return trace.Range{Lo: lo, Hi: hi}, known && alsoKnown
	}
	if name, isName := x.(string); isName && k == ifname && strings.HasSuffix(name, "*") && !strings.HasSuffix(name, `\*`) {
		return trace.Wildcard(strings.TrimSuffix(name, "*")), true
	}
	v, ok := k.value(x)
	return trace.Just(v), ok
}

func (k *kind) prefix(arg any) (r trace.Range, ok bool) {
	switch {
	case k == mark:
		return markPrefix(arg)
	case !k.address:
		return r, false
	}
	p, ok := prefix(arg)
	if !ok {
		return r, false
	}
	return trace.Prefix(p), true
}

// markPrefix is how nft writes an aligned range of marks: 256/24 is from 0x100 to 0x1ff.
func markPrefix(arg any) (r trace.Range, ok bool) {
	fields, _ := arg.(map[string]any)
	first, errFirst := strconv.ParseUint(fmt.Sprint(fields["addr"]), 10, 32)
	length, errLength := strconv.ParseUint(fmt.Sprint(fields["len"]), 10, 6)
	if errFirst != nil || errLength != nil || length > 32 {
		return r, false
	}
	rest := uint64(0xffffffff) >> length
	if first&rest != 0 { // "meta mark & 0 == 16", which nft prints as 16/0, holds for no mark
		return trace.Range{Lo: trace.Number(1)}, true
	}
	return trace.Range{Lo: trace.Number(first), Hi: trace.Number(first | rest)}, true
}

func prefix(arg any) (p netip.Prefix, ok bool) {
	fields, _ := arg.(map[string]any)
	p, err := netip.ParsePrefix(fmt.Sprintf("%v/%v", fields["addr"], fields["len"]))
	return p, err == nil
}

// single returns the key and the value of an object that has only one.
func single(x any) (key string, value any) {
	object, _ := x.(map[string]any)
	if len(object) != 1 {
		return "", nil
	}
	for key, value = range object {
	}
	return key, value
}

// flagsOf returns what is or'ed together: a list, as nft up to 1.0 writes flags, or "|", as later ones do.
func flagsOf(x any) (flags []any, ok bool) {
	if key, arg := single(x); key == "|" {
		x = arg
	}
	flags, ok = x.([]any)
	return flags, ok
}
