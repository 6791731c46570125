package routing

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

var hopFlags = []flag{
	{unix.RTNH_F_DEAD, "dead"}, {unix.RTNH_F_ONLINK, "onlink"}, {unix.RTNH_F_PERVASIVE, "pervasive"}, {unix.RTNH_F_LINKDOWN, "linkdown"},
}

// route reads struct rtmsg: family, length of the destination, of the source, TOS, table, protocol, scope, type, flags.
func (r *reader) route(header []byte, f *fields) entry {
	bits := binary.NativeEndian.Uint32(header[8:])
	if bits&unix.RTM_F_CLONED != 0 {
		return nil
	}
	table := uint32(header[4])
	if f.has(unix.RTA_TABLE) {
		table = f.number(unix.RTA_TABLE)
	}
	e := r.hop(f)
	e["dst"] = prefix(f.addr(unix.RTA_DST), header[1], "default")
	e["flags"] = wordsOf(hopFlags, bits)
	e.set("from", prefix(f.addr(unix.RTA_SRC), header[2], ""), header[2] != 0)
	e.set("tos", "0x"+strconv.FormatUint(uint64(header[3]), 16), header[3] != 0)
	e.set("type", routeTypes.of(uint32(header[7])), header[7] != unix.RTN_UNICAST)
	e.set("table", tables.of(table), table != unix.RT_TABLE_MAIN)
	e.set("scope", scopes.of(uint32(header[6])), header[6] != unix.RT_SCOPE_UNIVERSE)
	e.set("metric", f.number(unix.RTA_PRIORITY), f.has(unix.RTA_PRIORITY))
	e.set("prefsrc", f.addr(unix.RTA_PREFSRC), f.has(unix.RTA_PREFSRC))
	e.set("pref", preferences.of(f.number(unix.RTA_PREF)), f.has(unix.RTA_PREF))
	e.set("nexthops", r.hops((*f)[unix.RTA_MULTIPATH]), f.has(unix.RTA_MULTIPATH))
	return e
}

// prefix writes an address of this length; without is that of an empty one.
func prefix(addr string, length byte, without string) string {
	if length == 0 && addr == "" {
		return without
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return "0/" + strconv.Itoa(int(length))
	}
	if int(length) == a.BitLen() {
		return addr
	}
	return addr + "/" + strconv.Itoa(int(length))
}

// hop reads where a route leads to.
func (r *reader) hop(f *fields) entry {
	e := entry{}
	e.set("gateway", f.addr(unix.RTA_GATEWAY), f.has(unix.RTA_GATEWAY))
	e.set("dev", r.deviceName(f.number(unix.RTA_OIF)), f.has(unix.RTA_OIF))
	e.set("encap", f.number(unix.RTA_ENCAP_TYPE), f.has(unix.RTA_ENCAP_TYPE))
	if via := (*f)[unix.RTA_VIA]; len(via) > 2 { // struct rtvia: family, address
		host, _ := netip.AddrFromSlice(via[2:])
		e["via"] = entry{"family": families.of(uint32(binary.NativeEndian.Uint16(via))), "host": host.String()}
	}
	return e
}

// hops reads a list of struct rtnexthop: length, flags, weight less one, index of the interface; then attributes.
func (r *reader) hops(b []byte) []entry {
	list := []entry{}
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			break
		}
		e := r.hop(parse(b[unix.SizeofRtNexthop:length]))
		e["dev"] = r.deviceName(binary.NativeEndian.Uint32(b[4:]))
		e["weight"] = int(b[3]) + 1
		e["flags"] = wordsOf(hopFlags, uint32(b[2]))
		list = append(list, e)
		b = b[min((length+3)&^3, len(b)):]
	}
	return list
}

func (r *reader) deviceName(index uint32) string {
	if link, ok := r.links[index]; ok {
		return link["ifname"].(string)
	}
	return "if" + strconv.FormatUint(uint64(index), 10)
}
