package routing

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// The attributes, flags and actions of rules (linux/fib_rules.h), which golang.org/x/sys has not all of.
const (
	fraDst            = 1
	fraSrc            = 2
	fraIIF            = 3
	fraGoto           = 4
	fraPriority       = 6
	fraMark           = 10
	fraFlow           = 11
	fraSuppressGroup  = 13
	fraSuppressLength = 14
	fraTable          = 15
	fraMask           = 16
	fraOIF            = 17
	fraPad            = 18
	fraL3mdev         = 19
	fraUsers          = 20
	fraProtocol       = 21
	fraIPProtocol     = 22
	fraSport          = 23
	fraDport          = 24
	fraSportMask      = 28
	fraDportMask      = 29

	ruleInverted   = 2
	ruleUnresolved = 4

	actionTable = 1
	actionGoto  = 2
	actionNop   = 3

	none = math.MaxUint32 // no group and no length to suppress
)

// known are the attributes that rule reads. One that it doesn't is listed by its number.
var known = map[uint16]bool{
	fraDst: true, fraSrc: true, fraIIF: true, fraGoto: true, fraPriority: true, fraMark: true, fraFlow: true, fraSuppressGroup: true,
	fraSuppressLength: true, fraTable: true, fraMask: true, fraOIF: true, fraPad: true, fraL3mdev: true, fraUsers: true, fraProtocol: true,
	fraIPProtocol: true, fraSport: true, fraDport: true,
}

// rule reads struct fib_rule_hdr: family, length of the destination, of the source, TOS, table, two reserved, action, flags.
func (r *reader) rule(header []byte, f *fields) entry {
	e := entry{"priority": f.number(fraPriority), "src": "all"}
	bits := binary.NativeEndian.Uint32(header[8:])
	e.set("not", nil, bits&ruleInverted != 0)
	e.selector("src", f.addr(fraSrc), header[2])
	e.selector("dst", f.addr(fraDst), header[1])
	e.set("tos", fmt.Sprintf("%#x", header[3]), header[3] != 0)
	mark, mask := f.number(fraMark), f.number(fraMask)
	e.set("fwmark", fmt.Sprintf("%#x", mark), mark != 0 || mask != 0)
	e.set("fwmask", fmt.Sprintf("%#x", mask), (mark != 0 || mask != 0) && mask != math.MaxUint32)
	e.set("iif", f.text(fraIIF), f.has(fraIIF))
	e.set("oif", f.text(fraOIF), f.has(fraOIF))
	e.set("l3mdev", nil, f.number(fraL3mdev) != 0)
	if users := (*f)[fraUsers]; len(users) == 8 {
		e["uid_start"], e["uid_end"] = binary.NativeEndian.Uint32(users), binary.NativeEndian.Uint32(users[4:])
	}
	if p := f.number(fraIPProtocol); p != 0 {
		name, ok := protocols[p]
		if !ok {
			name = fmt.Sprintf("ipproto-%d", p)
		}
		e["ipproto"] = name
	}
	e.ports("sport", (*f)[fraSport])
	e.ports("dport", (*f)[fraDport])
	e.action(header, f, bits)
	for kind, value := range *f {
		whole := (kind == fraSportMask || kind == fraDportMask) && len(value) == 2 && binary.NativeEndian.Uint16(value) == math.MaxUint16
		e.set(fmt.Sprintf("attribute %d", kind), nil, !known[kind] && !whole)
	}
	return e
}

func (e entry) selector(key, addr string, length byte) {
	full := map[bool]byte{false: 32, true: 128}[len(addr) > 0 && isIPv6(addr)]
	e.set(key, addr, addr != "")
	e.set(key+"len", int(length), addr != "" && length != full)
}

func isIPv6(addr string) bool {
	for i := range len(addr) {
		if addr[i] == ':' {
			return true
		}
	}
	return false
}

func (e entry) ports(key string, b []byte) {
	if len(b) != 4 {
		return
	}
	start, end := int(binary.NativeEndian.Uint16(b)), int(binary.NativeEndian.Uint16(b[2:]))
	if start == end {
		e[key] = start
		return
	}
	e[key+"_start"], e[key+"_end"] = start, end
}

func (e entry) action(header []byte, f *fields, bits uint32) {
	table := uint32(header[4])
	if f.has(fraTable) {
		table = f.number(fraTable)
	}
	switch header[7] {
	case actionTable:
		e.set("table", tables.of(table), table != unix.RT_TABLE_UNSPEC)
		group, length := f.number(fraSuppressGroup), f.number(fraSuppressLength)
		e.set("suppress_prefixlen", length, f.has(fraSuppressLength) && length != none)
		e.set("suppress_ifgroup", group, f.has(fraSuppressGroup) && group != none)
	case actionGoto:
		e["goto"] = f.number(fraGoto)
		e.set("unresolved", nil, bits&ruleUnresolved != 0)
	case actionNop:
		e["nop"] = nil
	default:
		e["action"] = routeTypes.of(uint32(header[7]))
	}
}
