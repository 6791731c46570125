package trace

import (
	"net/netip"
)

// RouteQuery is what routing looks at.
type RouteQuery struct {
	Family       Family
	Src, Dst     netip.Addr // Src is invalid if it is not chosen yet
	IIF, OIF     string
	Mark, UID    uint32
	Protocol     uint8
	Sport, Dport uint16
}

// RouteResult is where a packet goes.
type RouteResult struct {
	Type    string // "unicast", "local", ... or "none"
	Dev     string
	Via     netip.Addr
	PrefSrc netip.Addr // the source that the kernel chooses for a packet without one
	Unknown string     // why it can't be told
}

// Lookup routes a packet.
func (r *Routing) Lookup(q RouteQuery) RouteResult {
	return RouteResult{Unknown: "the routes are not known"}
}

// Type is the type of an address (addrtype), limited to dev unless that is "".
func (r *Routing) Type(a netip.Addr, dev string) (kind string, known bool) {
	if a.IsLoopback() {
		return "local", true
	}
	if a.IsMulticast() {
		return "multicast", true
	}
	if !r.LinksKnown {
		return "", false
	}
	for _, l := range r.Links {
		for _, p := range l.Addrs {
			if p.Addr() == a && (dev == "" || dev == l.Name) {
				return "local", true
			}
		}
	}
	return "unicast", true
}
