package route

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/rules"
)

// object is one thing that the kernel must have once, as the message that adds it.
type object struct {
	kind       kind
	family     rules.Family
	name       string
	header     []byte
	attributes []*nl.RtAttr
}

// kind is what the objects of one kind have in common. An object that the kernel lists is ours if its header agrees with
// ours at identity and its attributes, but for the incidental ones, are ours and no others: one that detour has never
// heard of makes it another's.
type kind struct {
	tool           string // goes before the name where nothing else says that it is about routing
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

// ifaProto is IFA_PROTO, which golang.org/x/sys lacks: who has made an address.
const ifaProto = 11

// lo is the index of every namespace's loopback interface.
const lo = 1

// newRule is `ip rule add fwmark MARK lookup TABLE`.
func newRule(f rules.Family, r rules.LocalRoute) object {
	header := unix.RtMsg{Family: af(f), Type: unix.FR_ACT_TO_TBL}
	return object{ipRule, f, fmt.Sprintf("rule fwmark %d lookup %d", r.Mark, r.Table),
		(&nl.RtMsg{RtMsg: header}).Serialize(),
		[]*nl.RtAttr{
			nl.NewRtAttr(unix.FRA_TABLE, nl.Uint32Attr(uint32(r.Table))),
			nl.NewRtAttr(unix.FRA_FWMARK, nl.Uint32Attr(r.Mark)),
			nl.NewRtAttr(unix.FRA_FWMASK, nl.Uint32Attr(^uint32(0))),
			nl.NewRtAttr(unix.FRA_SUPPRESS_PREFIXLEN, nl.Uint32Attr(^uint32(0))), // none, which the kernel lists too
		}}
}

// newRoute is `ip route add local default dev lo table TABLE`.
func newRoute(f rules.Family, r rules.LocalRoute) object {
	header := unix.RtMsg{Family: af(f), Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL}
	return object{localRoute, f, fmt.Sprintf("local route on lo in table %d", r.Table),
		(&nl.RtMsg{RtMsg: header}).Serialize(),
		[]*nl.RtAttr{
			nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(r.Table))),
			nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(lo)),
		}}
}

// newAddress is `ip addr add PREFIX dev lo`, with nodad for IPv6.
func newAddress(f rules.Family, prefix netip.Prefix) object {
	header := unix.IfAddrmsg{Family: af(f), Prefixlen: uint8(prefix.Bits()), Index: lo}
	attributes := []*nl.RtAttr{nl.NewRtAttr(unix.IFA_ADDRESS, prefix.Addr().AsSlice())}
	if f == rules.IPv6 {
		header.Flags = unix.IFA_F_NODAD
	} else {
		attributes = append(attributes, nl.NewRtAttr(unix.IFA_LOCAL, prefix.Addr().AsSlice()))
	}
	if prefix.Addr().IsLoopback() {
		header.Scope = unix.RT_SCOPE_HOST
	}
	return object{loAddress, f, fmt.Sprintf("address %s on lo", prefix),
		(&nl.IfAddrmsg{IfAddrmsg: header}).Serialize(), attributes}
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
	attributes, err := nl.ParseRouteAttr(listed[len(o.header):])
	if err != nil {
		return false
	}
	agreeing := 0
	for _, a := range attributes {
		switch {
		case slices.Contains(o.kind.incidental, a.Attr.Type):
		case o.has(a.Attr.Type, a.Value):
			agreeing++
		default:
			return false
		}
	}
	return agreeing == len(o.attributes)
}

func (o object) has(attribute uint16, value []byte) bool {
	return slices.ContainsFunc(o.attributes, func(a *nl.RtAttr) bool {
		return a.Type == attribute && bytes.Equal(a.Data, value)
	})
}
