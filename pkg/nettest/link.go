package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

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

var everything = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// end is one end of a veth pair, with an address in a /24 and one in a /64.
type end struct {
	link   string
	v4, v6 netip.Addr
}

func (e end) addrs() []netip.Addr { return []netip.Addr{e.v4, e.v6} }

// subnets are the two networks of an end's addresses.
func (e end) subnets() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(e.v4, 24).Masked(), netip.PrefixFrom(e.v6, 64).Masked()}
}

var (
	podEnd     = end{PodLink, PodIPv4, PodIPv6}
	outsideEnd = end{outsideLink, OutsideIPv4, OutsideIPv6}
)

// Link connects pod and outside, which must be new namespaces, with a veth pair. The pod gets its addresses and default
// routes via outside; in outside every address that isn't the pod's is local, so that a listener on a wildcard address
// answers for all of the Internet.
func Link(pod, outside *Namespace) error {
	if err := connect(pod, podEnd, outside, outsideEnd); err != nil {
		return err
	}
	if err := outside.Do(setUpOutside); err != nil {
		return fmt.Errorf("set up outside: %w", err)
	}
	return wrap("set up pod", pod.Do(func() error { return routeVia(outsideEnd, podEnd, everything, unix.RT_TABLE_MAIN) }))
}

func setUpOutside() error {
	if err := routeBack(outsideEnd); err != nil {
		return err
	}
	lo, err := findLink("lo")
	if err != nil {
		return err
	}
	for _, all := range everything {
		route := netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(all), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST, Type: unix.RTN_LOCAL}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("make %s local: %w", all, err)
		}
	}
	return nil
}

// routeBack makes the networks of an end that outside has reachable. Everything is local to outside by table local,
// because the kernel looks there to decide whether a source address is its own. The kernel looks there before it looks in
// main, so the way back to the pod must be in it too.
func routeBack(e end) error {
	link, err := findLink(e.link)
	if err != nil {
		return err
	}
	for _, subnet := range e.subnets() {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(subnet), Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route %s: %w", subnet, err)
		}
	}
	return nil
}

// routeVia routes an IPv4 and an IPv6 prefix over the end from, by the peer via.
func routeVia(via, from end, prefixes []netip.Prefix, table int) error {
	link, err := findLink(from.link)
	if err != nil {
		return err
	}
	for i, gateway := range via.addrs() {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefixes[i]), Gw: gateway.AsSlice(), Table: table}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route %s via %s: %w", prefixes[i], gateway, err)
		}
	}
	return nil
}

// connect makes a veth pair of the ends a in namespace from and b in to, and waits until it carries packets.
func connect(from *Namespace, a end, to *Namespace, b end) error {
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: a.link},
		PeerName:      b.link,
		PeerNamespace: netlink.NsFd(int(to.handle)),
	}
	if err := from.Do(func() error { return netlink.LinkAdd(veth) }); err != nil {
		return fmt.Errorf("create veth pair %s-%s: %w", a.link, b.link, err)
	}
	if err := from.Do(func() error { return bringUp(a) }); err != nil {
		return err
	}
	if err := to.Do(func() error { return bringUp(b) }); err != nil {
		return err
	}
	// The end that was up first learns of the other one later, and drops what it sends before.
	if err := from.Do(func() error { return awaitCarrier(a.link) }); err != nil {
		return err
	}
	if err := from.Do(func() error { return AwaitLocal(a.v6) }); err != nil {
		return err
	}
	return to.Do(func() error { return AwaitLocal(b.v6) })
}

// bringUp brings the end's link up and gives it its addresses.
func bringUp(e end) error {
	link, err := findLink(e.link)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", e.link, err)
	}
	for _, prefix := range []netip.Prefix{netip.PrefixFrom(e.v4, 24), netip.PrefixFrom(e.v6, 64), netip.PrefixFrom(linkLocal(e.v6), 64)} {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			// Duplicate address detection would keep the address unusable for a second.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", prefix, e.link, err)
		}
	}
	return nil
}

// linkLocal is addr in fe80::/64. From such an address a router looks for its neighbours, and the one that the kernel
// gives the link waits for duplicate address detection.
func linkLocal(addr netip.Addr) netip.Addr {
	bytes := addr.As16()
	copy(bytes[:8], []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0})
	return netip.AddrFrom16(bytes)
}

func awaitCarrier(name string) error {
	return await("bring "+name+" up: it has no carrier", func() (bool, error) {
		link, err := findLink(name)
		return err == nil && link.Attrs().OperState == netlink.OperUp, err
	})
}

// AwaitLocal waits until the kernel takes what is sent to an IPv6 address of the calling thread's namespace: it makes the route to a new
// address, and answers its neighbours, some time after it has said that the address is there.
func AwaitLocal(addr netip.Addr) error {
	filter := netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(netip.PrefixFrom(addr, addr.BitLen()))}
	return await("add "+addr.String()+": it has no local route", func() (bool, error) {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		return len(routes) > 0, err
	})
}

// await waits until ok returns true. If it never does, the error is without.
func await(without string, ok func() (bool, error)) error {
	for deadline := time.Now().Add(Patience); ; time.Sleep(time.Millisecond) {
		done, err := ok()
		if done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New(without)
		}
	}
}

func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	return link, wrap("find "+name, err)
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
