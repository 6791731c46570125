package route

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// object is one thing that the kernel must have exactly once, as the message that adds it.
type object struct {
	kind       kind
	family     rules.Family
	name       string
	header     []byte
	attributes []netlink.Attribute
}

// kind is what the objects of one kind have in common. A listed object is ours if its header agrees with ours at identity
// and its attributes, without the incidental ones, are exactly ours. An attribute that detour doesn't know makes it
// somebody else's.
type kind struct {
	tool           string // precedes the name if nothing else says that it is about routing
	add, del, list int    // types of netlink messages
	identity       []int  // offsets
	incidental     []uint16
}

var (
	ipRule = kind{"ip ", unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_GETRULE,
		[]int{0, 3, 7, 8, 9, 10, 11}, // family, TOS, action, flags such as not; prefixes are attributes too
		[]uint16{unix.FRA_PRIORITY, unix.FRA_PROTOCOL}}
	localRoute = kind{"", unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_GETROUTE,
		[]int{0, 3, 7}, // family, TOS, type
		[]uint16{unix.RTA_PRIORITY, unix.RTA_PREF, unix.RTA_CACHEINFO}}
	loAddress = kind{"", unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_GETADDR,
		[]int{0, 1, 4, 5, 6, 7}, // family, length of the prefix, interface
		[]uint16{unix.IFA_LABEL, unix.IFA_FLAGS, unix.IFA_CACHEINFO, unix.IFA_BROADCAST, ifaProto}}
)

// ifaProto is IFA_PROTO, which golang.org/x/sys lacks: who made an address.
const ifaProto = 11

// lo is the index of every namespace's loopback interface.
const lo = 1

// newRule is `ip rule add fwmark MARK lookup TABLE`.
func newRule(f rules.Family, r rules.LocalRoute) object {
	return object{ipRule, f, fmt.Sprintf("rule fwmark %d lookup %d", r.Mark, r.Table),
		[]byte{af(f), 0, 0, 0, 0, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}, // struct fib_rule_hdr
		[]netlink.Attribute{
			netlink.Native(unix.FRA_TABLE, uint32(r.Table)),
			netlink.Native(unix.FRA_FWMARK, r.Mark),
			netlink.Native(unix.FRA_FWMASK, ^uint32(0)),
			netlink.Native(unix.FRA_SUPPRESS_PREFIXLEN, ^uint32(0)), // none, which the kernel lists too
		}}
}

// newRoute is `ip route add local default dev lo table TABLE`.
func newRoute(f rules.Family, r rules.LocalRoute) object {
	return object{localRoute, f, fmt.Sprintf("local route on lo in table %d", r.Table),
		[]byte{af(f), 0, 0, 0, 0, unix.RTPROT_BOOT, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}, // struct rtmsg
		[]netlink.Attribute{
			netlink.Native(unix.RTA_TABLE, uint32(r.Table)),
			netlink.Native(unix.RTA_OIF, lo),
		}}
}

// newAddress is `ip addr add PREFIX dev lo`, with nodad for IPv6.
func newAddress(f rules.Family, prefix netip.Prefix) object {
	var flags, scope byte
	attributes := []netlink.Attribute{{Kind: unix.IFA_ADDRESS, Data: prefix.Addr().AsSlice()}}
	if f == rules.IPv6 {
		flags = unix.IFA_F_NODAD
	} else {
		attributes = append(attributes, netlink.Attribute{Kind: unix.IFA_LOCAL, Data: prefix.Addr().AsSlice()})
	}
	if prefix.Addr().IsLoopback() {
		scope = unix.RT_SCOPE_HOST
	}
	header := binary.NativeEndian.AppendUint32([]byte{af(f), byte(prefix.Bits()), flags, scope}, lo) // struct ifaddrmsg
	return object{loAddress, f, fmt.Sprintf("address %s on lo", prefix), header, attributes}
}

func af(f rules.Family) uint8 {
	if f == rules.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// is reports whether a message of the kernel's list is about the object.
func (o object) is(listed []byte) bool {
	if len(listed) < len(o.header) {
		return false
	}
	for _, at := range o.kind.identity {
		if listed[at] != o.header[at] {
			return false
		}
	}
	agreeing := 0
	for a := range netlink.Attributes(listed[len(o.header):]) {
		switch {
		case slices.Contains(o.kind.incidental, a.Kind):
		case o.has(a):
			agreeing++
		default:
			return false
		}
	}
	return agreeing == len(o.attributes)
}

func (o object) has(listed netlink.Attribute) bool {
	return slices.ContainsFunc(o.attributes, func(a netlink.Attribute) bool {
		return a.Kind == listed.Kind && bytes.Equal(a.Data, listed.Data)
	})
}
