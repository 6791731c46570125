package trace

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routeOut routes a packet of this namespace. It returns false if the packet has ended.
func (w *walk) routeOut() bool {
	r := &w.ns.Routing
	if w.stays {
		w.local, w.out, w.outKnown = true, Loopback, true
		return true
	}
	res := r.Lookup(w.query(""))
	if res.Unknown == "" {
		return w.follow(res)
	}
	if isLocal, known := w.isLocal(); known && isLocal {
		w.local, w.out, w.outKnown = true, Loopback, true
		return true
	}
	w.local, w.out, w.outKnown = false, w.packet.ToInterface, w.packet.ToInterface != ""
	return true
}

// reroute routes a packet that OUTPUT has changed, at once: what changes later counts no more. The chains behind still see the old interface.
func (w *walk) reroute() {
	local, out, known := w.local, w.out, w.outKnown
	if !w.routeOut() {
		return
	}
	newLocal, newOut, newKnown := w.local, w.out, w.outKnown
	w.rerouted = func() { w.local, w.out, w.outKnown = newLocal, newOut, newKnown }
	w.local, w.out, w.outKnown = local, out, known
}

// routeIn routes a packet that came in.
func (w *walk) routeIn() bool {
	if w.stays {
		w.local = true
		return true
	}
	res := w.ns.Routing.Lookup(w.query(w.in))
	if res.Unknown != "" {
		return w.routeInUnknown(res.Unknown)
	}
	if res.Type == "unicast" && !w.ns.Routing.forwards(w.family) {
		w.end(Dropped, nil, fmt.Sprintf("the packet is for %s, which is not an address of this namespace, and forwarding is off", w.dst.Addr()))
		return false
	}
	return w.follow(res)
}

func (w *walk) routeInUnknown(why string) bool {
	isLocal, known := w.isLocal()
	if !known && w.packet.ToInterface == "" {
		question := fmt.Sprintf("it is not known whether %s is an address of this namespace", w.dst.Addr())
		isLocal = w.assume(question, question, &Decision{Text: "route"}, []string{"it is one", "it is none"}) == 0
	}
	w.local = isLocal
	if !isLocal {
		w.out, w.outKnown = w.packet.ToInterface, w.packet.ToInterface != ""
		w.note("route: "+why, "")
	}
	return true
}

// isLocal reports whether the destination is an address of this namespace, as far as its addresses tell.
func (w *walk) isLocal() (local, known bool) {
	kind, known := w.ns.Routing.Type(w.dst.Addr(), "")
	return kind == "local" || kind == "broadcast" && w.packet.Direction == In, known
}

// follow goes where a route leads.
func (w *walk) follow(res RouteResult) bool {
	res = w.onePath(res)
	w.preferred = res.PrefSrc
	switch res.Type {
	case "local", "broadcast", "anycast":
		w.local, w.out, w.outKnown = true, Loopback, true
		if w.packet.Direction == In {
			w.out = ""
		}
		w.note("route: delivered here", "")
		return true
	case "unicast", "multicast":
		w.local, w.out, w.outKnown = false, res.Dev, true
		via := ""
		if res.Via.IsValid() {
			via = " via " + res.Via.String()
		}
		w.note(fmt.Sprintf("route: %s%s dev %s", w.dst.Addr(), via, w.out), "")
		return true
	case "unreachable", "prohibit":
		w.end(Rejected, &Decision{Text: "route"}, fmt.Sprintf("the route to %s is of type %s", w.dst.Addr(), res.Type))
	case "blackhole":
		w.end(Dropped, &Decision{Text: "route"}, fmt.Sprintf("the route to %s is of type blackhole", w.dst.Addr()))
	default:
		w.end(Rejected, &Decision{Text: "route"}, fmt.Sprintf("there is no route to %s", w.dst.Addr()))
	}
	return false
}

// onePath chooses among the nexthops of a multipath route: the kernel does by a hash of the packet's addresses.
func (w *walk) onePath(res RouteResult) RouteResult {
	if len(res.Several) < 2 {
		return res
	}
	odds, sum := make([]float64, len(res.Several)), 0.0
	for i, hop := range res.Several {
		odds[i] = float64(max(hop.Weight, 1))
		sum += odds[i]
	}
	for i := range odds {
		odds[i] /= sum
	}
	hop := res.Several[w.chance(odds)]
	if res.Dev != hop.Dev && (res.Route == nil || !res.Route.PrefSrc.IsValid()) {
		res.PrefSrc, _ = w.ns.Routing.primary(hop.Dev, w.family)
	}
	res.Dev, res.Via = hop.Dev, hop.Via
	return res
}

func (w *walk) query(in string) RouteQuery {
	return RouteQuery{
		Family: w.family, Src: w.src.Addr(), Dst: w.dst.Addr(), IIF: in, Mark: w.mark, UID: w.packet.UID,
		Protocol: w.packet.Protocol, Sport: w.src.Port(), Dport: w.dst.Port(),
	}
}

// chooseSource gives a packet without a source the one that its route has.
func (w *walk) chooseSource() {
	if w.src.Addr().IsValid() {
		return
	}
	addr := w.preferred
	if !addr.IsValid() && w.local {
		addr = w.dst.Addr()
	}
	if !addr.IsValid() {
		addr, _ = w.ns.Routing.primary(w.out, w.family)
	}
	w.src = netip.AddrPortFrom(addr, w.src.Port())
}

// masqueradeAddr is the source that the kernel chooses for the interface by which the packet leaves, whatever source the route has.
func (w *walk) masqueradeAddr() netip.Addr {
	if !w.outKnown {
		return netip.Addr{}
	}
	r := &w.ns.Routing
	q := w.query("")
	q.Src, q.OIF = netip.Addr{}, w.out
	res := r.Lookup(q)
	var addr netip.Addr
	switch {
	case w.family == IP6:
		addr = r.source6(w.out, w.dst.Addr())
	case res.Via.Is4():
		addr = r.source4(w.out, res.Via, "")
	default:
		addr = r.source4(w.out, w.dst.Addr(), "")
	}
	if !addr.IsValid() { // the links are not known
		return res.PrefSrc
	}
	return addr
}

// AddrTypes are the types of addresses by ip's and nft's names (RTN_*).
var AddrTypes = map[string]uint64{
	"unspec": unix.RTN_UNSPEC, "unicast": unix.RTN_UNICAST, "local": unix.RTN_LOCAL, "broadcast": unix.RTN_BROADCAST, "anycast": unix.RTN_ANYCAST,
	"multicast": unix.RTN_MULTICAST, "blackhole": unix.RTN_BLACKHOLE, "unreachable": unix.RTN_UNREACHABLE, "prohibit": unix.RTN_PROHIBIT,
}

func (w *walk) addrType(a netip.Addr, dev string) ([]Value, bool) {
	if !a.IsValid() {
		return w.notKnown("the address is not known")
	}
	kind, known := w.ns.Routing.Type(a, dev)
	if !known {
		return w.notKnown(fmt.Sprintf("it is not known whether %s is an address of this namespace", a))
	}
	return one(AddrTypes[kind])
}

// primary is the first address that a link has in a family.
func (r *Routing) primary(link string, f Family) (netip.Addr, bool) {
	for _, l := range r.Links {
		if l.Name != link {
			continue
		}
		for _, p := range l.Addrs {
			if p.Addr().Is4() == (f == IP) && !p.Addr().IsLinkLocalUnicast() {
				return p.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

func (r *Routing) forwards(f Family) bool {
	on, ok := r.Forwarding[f]
	return on || !ok
}
