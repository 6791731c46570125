package trace

import "net/netip"

// Routing is what decides over a packet's route: the links with their addresses, the rules and the routes. A zero Routing means that
// nothing is known; see Known.
type Routing struct {
	Links  []Link
	Rules  []RoutingRule // in the order of their priority; nil stands for the kernel's own three
	Routes []Route
	// LinksKnown and RoutesKnown say whether the two were read.
	LinksKnown, RoutesKnown bool
	// Forwarding says for each family (IP, IP6) whether the namespace forwards packets; a family that is missing does.
	Forwarding map[Family]bool
}

// Link is an interface.
type Link struct {
	Name  string
	Addrs []netip.Prefix // with the length of their networks, the primary one first
	Down  bool
}

// RoutingRule is an `ip rule`.
type RoutingRule struct {
	Family       Family
	Priority     int
	From, To     netip.Prefix // invalid for all
	IIF, OIF     string       // "" for all
	Mark, Mask   uint32       // a Mask of 0 matches every mark
	UIDLo, UIDHi uint32       // for all users, 0 and 0xffffffff
	Protocol     uint8        // 0 for all
	Sport, Dport [2]uint16    // from, to; 0 for all
	Not          bool
	Table        string // "main", "local", "default" or a number
	Action       string // "" looks into Table; else "blackhole", "unreachable", "prohibit", "goto", "nop"
	Unknown      string // a selector that the front-end doesn't know
}

// Route is a route of a table.
type Route struct {
	Table    string
	Type     string // "unicast", "local", "broadcast", "multicast", "anycast", "blackhole", "unreachable", "prohibit", "throw"
	Dst      netip.Prefix
	Metric   int
	PrefSrc  netip.Addr
	Nexthops []Nexthop // one unless it is a multipath route
	Down     bool      // "linkdown", "dead"
}

// Nexthop is where a route leads.
type Nexthop struct {
	Via    netip.Addr
	Dev    string
	Weight int
}
