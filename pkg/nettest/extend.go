package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// The pod's second interface and its addresses there.
var (
	Net1IPv4 = netip.MustParseAddr("10.78.0.2")
	Net1IPv6 = netip.MustParseAddr("fd78::2")
)

// The addresses of the virtual machine behind the pod.
var (
	GuestIPv4 = netip.MustParseAddr("10.79.0.2")
	GuestIPv6 = netip.MustParseAddr("fd79::2")
)

// Net1Link and GuestLink are interfaces of the pod beside PodLink: another network's, and that of the virtual machine.
const (
	Net1Link  = "net1"
	GuestLink = "k6t-vm"
)

var (
	podNet1     = end{Net1Link, Net1IPv4, Net1IPv6}
	outsideNet1 = end{"pod1", netip.MustParseAddr("10.78.0.1"), netip.MustParseAddr("fd78::1")}
	podGuest    = end{GuestLink, netip.MustParseAddr("10.79.0.1"), netip.MustParseAddr("fd79::1")}
	guestEnd    = end{"eth0", GuestIPv4, GuestIPv6}
)

// net1Routes are reached over net1. They are for documentation (RFC 5737, RFC 3849).
var net1Routes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:78::/48")}

func overNet1(p Packet) bool {
	return p.Via == Net1Link || within(p.Dst.Addr(), net1Routes) || within(p.Dst.Addr(), podNet1.subnets())
}

func withGuest(p Packet) bool {
	return p.Direction == Guest || within(p.Dst.Addr(), podGuest.subnets())
}

func within(addr netip.Addr, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
}

// extend adds what the packets need and the world lacks.
func (w *World) extend(packets []Packet) error {
	if !w.net1 && slices.ContainsFunc(packets, overNet1) {
		if err := w.addNet1(); err != nil {
			return fmt.Errorf("add %s: %w", Net1Link, err)
		}
		w.net1 = true
	}
	if w.Guest == nil && slices.ContainsFunc(packets, withGuest) {
		guest, err := NewNamespace("guest")
		if err != nil {
			return err
		}
		if err := w.addGuest(guest); err != nil {
			return fmt.Errorf("add guest: %w", errors.Join(err, guest.Close()))
		}
		w.Guest = guest
	}
	return nil
}

// lacks names what a packet needs and the world lacks; "" if that is nothing.
func (w *World) lacks(p Packet) string {
	switch {
	case !w.net1 && overNet1(p):
		return Net1Link
	case w.Guest == nil && withGuest(p):
		return "guest"
	}
	return ""
}

func (w *World) addNet1() error {
	if err := connect(w.Pod, podNet1, w.Outside, outsideNet1); err != nil {
		return err
	}
	if err := w.Outside.Do(func() error { return routeBack(outsideNet1) }); err != nil {
		return err
	}
	return w.Pod.Do(func() error { return routeVia(outsideNet1, podNet1, net1Routes, unix.RT_TABLE_MAIN) })
}

// addGuest makes the pod the router between guest and outside.
func (w *World) addGuest(guest *Namespace) error {
	if err := connect(w.Pod, podGuest, guest, guestEnd); err != nil {
		return err
	}
	if err := guest.Do(func() error { return routeVia(podGuest, guestEnd, everything, unix.RT_TABLE_MAIN) }); err != nil {
		return err
	}
	if err := w.Pod.Do(forward); err != nil {
		return err
	}
	return w.Outside.Do(func() error { return routeVia(podEnd, outsideEnd, podGuest.subnets(), unix.RT_TABLE_LOCAL) })
}

// forward makes the calling thread's namespace a router.
func forward() error {
	for _, path := range []string{"/proc/sys/net/ipv4/conf/all/forwarding", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			return fmt.Errorf("forward: %w", err)
		}
	}
	return nil
}
