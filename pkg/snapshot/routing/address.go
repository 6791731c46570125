package routing

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

var linkFlags = []flag{
	{unix.IFF_LOOPBACK, "LOOPBACK"}, {unix.IFF_BROADCAST, "BROADCAST"}, {unix.IFF_POINTOPOINT, "POINTOPOINT"},
	{unix.IFF_MULTICAST, "MULTICAST"}, {unix.IFF_NOARP, "NOARP"}, {unix.IFF_UP, "UP"}, {unix.IFF_LOWER_UP, "LOWER_UP"},
}

// addresses lists the links, which it keeps, and their addresses.
func (r *reader) addresses() ([]entry, error) {
	list, err := r.list(unix.AF_UNSPEC, unix.RTM_GETLINK, unix.SizeofIfInfomsg, r.link)
	if err != nil {
		return nil, err
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		addresses, err := r.list(family, unix.RTM_GETADDR, unix.SizeofIfAddrmsg, address)
		if err != nil {
			return nil, err
		}
		r.place(addresses)
	}
	return list, nil
}

// link reads struct ifinfomsg: family, one that is empty, type, index, flags.
func (r *reader) link(header []byte, f *fields) entry {
	bits := binary.NativeEndian.Uint32(header[8:])
	words := wordsOf(linkFlags, bits)
	if bits&unix.IFF_UP != 0 && bits&unix.IFF_RUNNING == 0 {
		words = append([]string{"NO-CARRIER"}, words...)
	}
	e := entry{"ifname": f.text(unix.IFLA_IFNAME), "flags": words, "operstate": states.of(f.number(unix.IFLA_OPERSTATE)), "addr_info": []entry{}}
	r.links[binary.NativeEndian.Uint32(header[4:])] = e
	return e
}

// index is the key of an address's link, until it is placed there.
const index = "ifindex"

// place adds addresses to their links. One whose link is newer than the list of links is left out.
func (r *reader) place(addresses []entry) {
	for _, e := range addresses {
		if link := r.links[e[index].(uint32)]; link != nil {
			delete(e, index)
			link["addr_info"] = append(link["addr_info"].([]entry), e)
		}
	}
}

// address reads struct ifaddrmsg: family, length, flags, scope, index.
func address(header []byte, f *fields) entry {
	bits := uint32(header[2])
	if f.has(unix.IFA_FLAGS) {
		bits = f.number(unix.IFA_FLAGS)
	}
	local, peer := f.addr(unix.IFA_LOCAL), f.addr(unix.IFA_ADDRESS)
	if local == "" {
		local = peer
	}
	e := entry{index: binary.NativeEndian.Uint32(header[4:])}
	e["family"], e["local"], e["prefixlen"], e["scope"] = families.of(uint32(header[0])), local, int(header[1]), scopes.of(uint32(header[3]))
	e.set("address", peer, peer != local)
	e.set("broadcast", f.addr(unix.IFA_BROADCAST), f.has(unix.IFA_BROADCAST))
	e.set("secondary", true, bits&unix.IFA_F_SECONDARY != 0 && header[0] == unix.AF_INET)
	e.set("temporary", true, bits&unix.IFA_F_TEMPORARY != 0 && header[0] == unix.AF_INET6)
	e.set("tentative", true, bits&unix.IFA_F_TENTATIVE != 0)
	e.set("deprecated", true, bits&unix.IFA_F_DEPRECATED != 0)
	e.set("dadfailed", true, bits&unix.IFA_F_DADFAILED != 0)
	return e
}
