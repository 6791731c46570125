package nftables

import (
	"encoding/binary"
	"fmt"
	"math/big"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// datatype says how a value is written.
type datatype struct {
	name    string
	bits    int // of a value in a concatenation; 0 if it varies
	host    bool
	kind    kind
	symbols names
	prefix  bool // a range that is a prefix is written as one
}

type kind int

const (
	integer kind = iota
	bitmask
	text
	boolean
	address
	hardware
	protocol
	label
	millis
	class    // "1:2"
	quoted   // a number as a string
	device   // an interface's index, written as its name
	daytime  // seconds since midnight, UTC
	calendar // nanoseconds since 1970
)

// The datatypes, by nft's numbers, which the kernel keeps for sets.
var datatypes = [...]*datatype{
	2: {name: "nf_proto", bits: 8, symbols: nfprotoNames}, 3: {name: "bitmask", kind: bitmask}, 4: {name: "integer"},
	5: {name: "string", host: true, kind: text}, 6: {name: "ll_addr", kind: hardware},
	7: {name: "ipv4_addr", bits: 32, kind: address, prefix: true}, 8: {name: "ipv6_addr", bits: 128, kind: address, prefix: true},
	9: {name: "ether_addr", bits: 48, kind: hardware}, 10: {name: "ether_type", bits: 16, symbols: etherNames},
	11: {name: "arp_op", bits: 16, symbols: arpOpNames}, 12: {name: "inet_proto", bits: 8, kind: protocol},
	13: {name: "inet_service", bits: 16}, 14: {name: "icmp_type", bits: 8, symbols: icmpTypeNames},
	15: {name: "tcp_flag", bits: 8, kind: bitmask, symbols: tcpFlagNames}, 16: {name: "dccp_pkttype", bits: 4, symbols: dccpNames},
	17: {name: "mh_type", bits: 8, symbols: mobilityNames}, 18: {name: "time", bits: 64, host: true, kind: millis},
	19: {name: "mark", bits: 32, host: true, prefix: true}, 20: {name: "iface_index", bits: 32, host: true, kind: device},
	21: {name: "iface_type", bits: 16, host: true, symbols: linkTypeNames},
	22: {name: "realm", bits: 32, host: true, kind: quoted, prefix: true}, 23: {name: "classid", bits: 32, host: true, kind: class},
	24: {name: "uid", bits: 32, host: true}, 25: {name: "gid", bits: 32, host: true},
	26: {name: "ct_state", bits: 32, host: true, kind: bitmask, symbols: stateNames}, 27: {name: "ct_dir", bits: 8, symbols: dirNames},
	28: {name: "ct_status", bits: 32, host: true, kind: bitmask, symbols: statusNames},
	29: {name: "icmpv6_type", bits: 8, symbols: icmp6TypeNames}, 30: {name: "ct_label", bits: 128, host: true, kind: label},
	31: {name: "pkt_type", bits: 8, symbols: pktTypeNames}, 32: {name: "icmp_code", bits: 8, symbols: icmpCodeNames},
	33: {name: "icmpv6_code", bits: 8, symbols: icmp6CodeNames}, 34: {name: "icmpx_code", bits: 8, symbols: icmpxCodeNames},
	35: {name: "devgroup", bits: 32, host: true, prefix: true}, 36: {name: "dscp", bits: 6, symbols: dscpNames},
	37: {name: "ecn", bits: 2, symbols: ecnNames}, 38: {name: "fib_addrtype", bits: 32, host: true, symbols: addrTypeNames},
	39: {name: "boolean", bits: 1, kind: boolean}, 40: {name: "ct_event", bits: 32, host: true, kind: bitmask, symbols: eventNames},
	41: {name: "ifname", bits: 128, host: true, kind: text}, 42: {name: "igmp_type", bits: 8, symbols: igmpNames},
	43: {name: "time", bits: 64, host: true, kind: calendar}, 44: {name: "hour", bits: 32, host: true, kind: daytime},
	45: {name: "day", bits: 8, symbols: dayNames}, 46: {name: "cgroupsv2", bits: 64, host: true, kind: quoted},
}

// The datatypes that headers and keys have.
var (
	typeNfproto, typeBitmask, typeInteger, typeString   = datatypes[2], datatypes[3], datatypes[4], datatypes[5]
	typeIPv4, typeIPv6, typeEther, typeEtherType        = datatypes[7], datatypes[8], datatypes[9], datatypes[10]
	typeARPOp, typeProtocol, typePort, typeICMPType     = datatypes[11], datatypes[12], datatypes[13], datatypes[14]
	typeTCPFlags, typeDCCPType, typeMobility, typeTime  = datatypes[15], datatypes[16], datatypes[17], datatypes[18]
	typeMark, typeIfindex, typeLinkType, typeRealm      = datatypes[19], datatypes[20], datatypes[21], datatypes[22]
	typeClass, typeUID, typeGID, typeState              = datatypes[23], datatypes[24], datatypes[25], datatypes[26]
	typeDir, typeStatus, typeICMP6Type, typeLabel       = datatypes[27], datatypes[28], datatypes[29], datatypes[30]
	typePktType, typeICMPCode, typeICMP6Code, typeICMPX = datatypes[31], datatypes[32], datatypes[33], datatypes[34]
	typeGroup, typeDSCP, typeECN, typeAddrType          = datatypes[35], datatypes[36], datatypes[37], datatypes[38]
	typeBoolean, typeEvent, typeIfname, typeIGMP        = datatypes[39], datatypes[40], datatypes[41], datatypes[42]
	typeDate, typeHour, typeDay, typeCgroup             = datatypes[43], datatypes[44], datatypes[45], datatypes[46]
	typeVerdict                                         = &datatype{name: "verdict"}
)

const (
	verdictID   = 0xffffff00 // NFT_DATA_VERDICT
	subtypeBits = 6          // of a datatype's number in that of a concatenation
)

// typesOf splits the number of a concatenation's datatype. An unknown datatype is written as a number.
func typesOf(id uint32) []*datatype {
	if id == verdictID {
		return []*datatype{typeVerdict}
	}
	var list []*datatype
	for ; id != 0; id >>= subtypeBits {
		t := typeInteger
		if n := int(id & (1<<subtypeBits - 1)); n < len(datatypes) && datatypes[n] != nil {
			t = datatypes[n]
		}
		list = append(list, t)
	}
	if list == nil {
		return []*datatype{typeInteger}
	}
	slices.Reverse(list)
	return list
}

// form is how a value is stored and written.
type form struct {
	*datatype
	bits int  // of the value
	host bool // in the machine's byte order
}

func (t *datatype) form() form { return form{t, t.bits, t.host} }

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// inOrder returns raw with its most significant byte first.
func (f form) inOrder(raw []byte) []byte {
	if !f.host || !littleEndian {
		return raw
	}
	raw = slices.Clone(raw)
	slices.Reverse(raw)
	return raw
}

// number is ok if the value fits.
func number(ordered []byte) (n uint64, ok bool) {
	for i, b := range ordered {
		if i < len(ordered)-8 && b != 0 {
			return 0, false
		}
		n = n<<8 | uint64(b)
	}
	return n, true
}

// write returns a value as JSON. symbolic is false in ranges, where nft writes protocols as numbers.
func (w *writer) write(f form, raw []byte, symbolic bool) any {
	ordered := f.inOrder(raw)
	n, small := number(ordered)
	switch f.kind {
	case text:
		return textOf(raw)
	case address:
		return formatAddr(raw)
	case hardware:
		return net.HardwareAddr(raw).String()
	case label:
		return uint64(new(big.Int).SetBytes(ordered).TrailingZeroBits())
	case bitmask:
		return flags(f, ordered)
	default:
		if small {
			return w.number(f, n, symbolic)
		}
		return fmt.Sprintf("0x%x", new(big.Int).SetBytes(ordered))
	}
}

func (w *writer) number(f form, n uint64, symbolic bool) any {
	switch f.kind {
	case boolean:
		return n != 0
	case protocol:
		if name, ok := protocolNames[n]; ok && symbolic {
			return name
		}
	case millis:
		return n / 1000
	case quoted:
		return strconv.FormatUint(n, 10)
	case class:
		return formatClass(uint32(n))
	case device:
		return w.deviceName(uint32(n))
	case daytime:
		return formatHour(n)
	case calendar:
		return formatDate(n)
	default:
	}
	if name, ok := f.symbols[n]; ok {
		return name
	}
	return n
}

func textOf(raw []byte) string {
	s, _, _ := strings.Cut(string(raw), "\x00")
	return s
}

// formatAddr writes an address as glibc does, which knows IPv4 addresses behind 96 zeros.
func formatAddr(raw []byte) any {
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return fmt.Sprintf("0x%x", raw)
	}
	if addr.Is6() && !addr.Is4In6() && string(raw[:12]) == string(make([]byte, 12)) && raw[12]|raw[13] != 0 {
		return "::" + netip.AddrFrom4([4]byte(raw[12:])).String()
	}
	return addr.String()
}

func formatClass(handle uint32) string {
	switch handle {
	case 1<<32 - 1:
		return "root"
	case 0:
		return "none"
	}
	return fmt.Sprintf("%x:%x", handle>>16, handle&0xffff)
}

// flags writes a bit as its word, and several as an expression.
func flags(f form, ordered []byte) any {
	list := flagList(f, ordered)
	out := list[0]
	for _, flag := range list[1:] {
		out = one("|", []any{out, flag})
	}
	return out
}

// flagList has the words of all bits that are set, or one number.
func flagList(f form, ordered []byte) []any {
	n, _ := number(ordered)
	if bits.OnesCount64(n) < 2 {
		return []any{f.flag(n)}
	}
	var list []any
	for ; n != 0; n &= n - 1 {
		list = append(list, f.flag(n&-n))
	}
	return list
}

func (f form) flag(n uint64) any {
	if name, ok := f.symbols[n]; ok {
		return name
	}
	return n
}
