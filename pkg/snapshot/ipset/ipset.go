// Package ipset reads the IP sets of the calling thread's network namespace from the kernel. It starts no program and changes
// nothing.
package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// What golang.org/x/sys lacks of linux/netfilter/ipset/ip_set.h.
const (
	subsystem = unix.NFNL_SUBSYS_IPSET << 8
	dump      = 8 // IPSET_CMD_SAVE
	version   = 6 // IPSET_PROTOCOL_MIN

	attrProtocol = 1
	attrName     = 2
	attrType     = 3
	attrFamily   = 5
	attrData     = 7
	attrElements = 8

	dataNetmask = 20

	elementAddr     = 1
	elementPrefix   = 3
	elementPort     = 4
	elementProtocol = 7
	elementFlags    = 8
	elementMark     = 10
	elementMAC      = 17
	elementSet      = 18
	elementAddr2    = 20
	elementPrefix2  = 21
	elementDevice   = 23

	flagPhysdev = 1 << 1
	flagNomatch = 1 << 2
)

// Save returns what `ipset save` prints of all sets, without what doesn't matter for a match: of a set its type and family, of an
// element its parts and whether it is an exception. It is "" if there are no sets, or the kernel knows none. The sets are not
// of one moment.
func Save() (string, error) {
	c, err := nft.Open()
	if err != nil {
		return "", fmt.Errorf("read the IP sets: %w", err)
	}
	defer c.Close()
	var b strings.Builder
	var s set // that the kernel lists
	err = c.Conn.Ask(subsystem|dump, unix.NLM_F_DUMP, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, func(body []byte) {
		if len(body) < 4 {
			return
		}
		f := netlink.Parse(body[4:])
		if f[attrType] != nil {
			s = newSet(&f)
			fmt.Fprintf(&b, "create %s %s%s\n", s.name, s.kind, s.family)
		}
		for a := range netlink.Attributes(f[attrElements]) {
			element := netlink.Parse(a.Data)
			fmt.Fprintf(&b, "add %s %s\n", s.name, s.element(&element))
		}
	}, netlink.Attribute{Kind: attrProtocol, Data: []byte{version}})
	switch {
	case err == nil:
		return b.String(), nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPROTONOSUPPORT):
		return "", nil // the kernel has no IP sets
	case errors.Is(err, unix.EPERM):
		return "", fmt.Errorf("read the IP sets: %w: run as root, or with CAP_NET_ADMIN in the namespace", err)
	}
	return "", fmt.Errorf("read the IP sets: %w", err)
}

type set struct {
	name, kind string
	parts      []string // of its elements, such as "ip" and "port"
	family     string   // as an option
	netmask    string   // as a suffix of every address
}

func newSet(f *netlink.Fields) set {
	s := set{name: f.Text(attrName), kind: f.Text(attrType)}
	_, parts, _ := strings.Cut(s.kind, ":")
	s.parts = strings.Split(parts, ",")
	data := netlink.Parse(f[attrData])
	if mask := number(data[dataNetmask]); mask != 0 {
		s.netmask = "/" + strconv.Itoa(int(mask))
	}
	switch number(f[attrFamily]) {
	case unix.NFPROTO_IPV4:
		s.family = " family inet"
	case unix.NFPROTO_IPV6:
		s.family = " family inet6"
	}
	return s
}

// number reads a number of one or two bytes; 0 if there is none.
func number(b []byte) uint16 {
	switch len(b) {
	case 1:
		return uint16(b[0])
	case 2:
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// element prints an element. A part that is not known is printed as "unknown", which no reader takes for an element.
func (s set) element(f *netlink.Fields) string {
	flags := f.Number(elementFlags)
	var parts []string
	for i, part := range s.parts {
		switch part {
		case "ip", "net":
			if i == 0 {
				parts = append(parts, s.address(f[elementAddr], f[elementPrefix]))
			} else {
				parts = append(parts, s.address(f[elementAddr2], f[elementPrefix2]))
			}
		case "port":
			parts = append(parts, s.port(f))
		case "iface":
			parts = append(parts, map[bool]string{true: "physdev:"}[flags&flagPhysdev != 0]+f.Text(elementDevice))
		case "mac":
			parts = append(parts, net.HardwareAddr(f[elementMAC]).String())
		case "mark":
			parts = append(parts, fmt.Sprintf("0x%08x", f.Number(elementMark)))
		case "set":
			parts = append(parts, f.Text(elementSet))
		default:
			parts = append(parts, "unknown")
		}
	}
	words := strings.Join(parts, ",")
	if flags&flagNomatch != 0 {
		words += " nomatch"
	}
	return words
}

// address prints a nested address with its prefix's length, unless that is the whole address's.
func (s set) address(nested, prefix []byte) string {
	inner := netlink.Parse(nested)
	for _, data := range inner[1:3] {
		addr, ok := netip.AddrFromSlice(data)
		switch length := int(number(prefix)); {
		case !ok:
		case length != 0 && length != addr.BitLen():
			return addr.String() + "/" + strconv.Itoa(length)
		default:
			return addr.String() + s.netmask
		}
	}
	return "unknown"
}

// protocols are those that have ports.
var protocols = map[uint16]string{
	unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_UDPLITE: "udplite",
}

// port prints a port with its protocol, which a bitmap of ports doesn't have. Types and codes of ICMP are printed as a number.
func (s set) port(f *netlink.Fields) string {
	port := strconv.Itoa(int(number(f[elementPort])))
	if f[elementProtocol] == nil {
		return port
	}
	protocol := number(f[elementProtocol])
	if name := protocols[protocol]; name != "" {
		return name + ":" + port
	}
	return strconv.Itoa(int(protocol)) + ":" + port
}
