package nettest

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The addresses of every pod and of its outside. Each pair of namespaces has only itself, so all pairs share them.
var (
	PodIPv4     = netip.MustParseAddr("10.77.0.2")
	PodIPv6     = netip.MustParseAddr("fd77::2")
	OutsideIPv4 = netip.MustParseAddr("10.77.0.1")
	OutsideIPv6 = netip.MustParseAddr("fd77::1")
)

// PodLink is the pod's interface, and outsideLink its other end.
const (
	PodLink     = "eth0"
	outsideLink = "pod0"
)

var (
	everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	subnets    = []netip.Prefix{netip.PrefixFrom(OutsideIPv4, 24).Masked(), netip.PrefixFrom(OutsideIPv6, 64).Masked()}
)

// Link connects pod and outside, which must be new namespaces, with a veth pair. The pod gets its addresses and default
// routes via outside; in outside every address that isn't the pod's is local, so that a listener on a wildcard address
// answers for all of the Internet.
func Link(pod, outside *Namespace) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: PodLink},
		PeerName:      outsideLink,
		PeerNamespace: netlink.NsFd(int(outside.handle)),
	}
	if err := pod.Do(func() error { return netlink.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("create veth pair: %w", err)
	}
	if err := outside.Do(setUpOutside); err != nil {
		return fmt.Errorf("set up outside: %w", err)
	}
	return wrap("set up pod", pod.Do(setUpPod))
}

func setUpOutside() error {
	veth, err := bringUp(outsideLink, OutsideIPv4, OutsideIPv6)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	// Table local, because the kernel looks there to decide whether a source address is its own. That table is asked
	// before main, so the way back to the pod must stand in it too.
	for i := range everything {
		back := netlink.Route{LinkIndex: veth.Attrs().Index, Dst: ipNet(subnets[i]), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(&back); err != nil {
			return fmt.Errorf("add route %s: %w", subnets[i], err)
		}
		all := netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(everything[i]), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL}
		if err := netlink.RouteAdd(&all); err != nil {
			return fmt.Errorf("make %s local: %w", everything[i], err)
		}
	}
	return nil
}

func setUpPod() error {
	veth, err := bringUp(PodLink, PodIPv4, PodIPv6)
	if err != nil {
		return err
	}
	for i, via := range []netip.Addr{OutsideIPv4, OutsideIPv6} {
		route := netlink.Route{LinkIndex: veth.Attrs().Index, Dst: ipNet(everything[i]), Gw: via.AsSlice()}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add default route via %s: %w", via, err)
		}
	}
	return nil
}

// bringUp brings the link called name up and gives it the two addresses.
func bringUp(name string, v4, v6 netip.Addr) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", name, err)
	}
	for _, prefix := range []netip.Prefix{netip.PrefixFrom(v4, 24), netip.PrefixFrom(v6, 64)} {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			// Duplicate address detection would keep the address unusable for a second.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return nil, fmt.Errorf("add %s to %s: %w", prefix, name, err)
		}
	}
	return link, nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
