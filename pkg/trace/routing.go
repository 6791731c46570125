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
	Addrs []LinkAddr // in the kernel's order
	Down  bool
}

// LinkAddr is an address of a link, with the length of its network.
type LinkAddr struct {
	netip.Prefix
	Peer       netip.Addr // at the other end of a point-to-point link
	Broadcast  netip.Addr // of IPv4, where it has one
	Scope      Scope
	NotSource  bool // the kernel does not choose it as a source: a secondary IPv4 address, a tentative IPv6 address
	Deprecated bool
}

// Scope is the scope of an address or a route by ip's name; "" is "global".
type Scope string

// The scopes that are narrower than global.
const (
	ScopeSite Scope = "site"
	ScopeLink Scope = "link"
	ScopeHost Scope = "host"
)

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
	MinPrefix    int    // a route of Table with a shorter prefix does not count (one more than suppress_prefixlength)
	Action       string // "" looks into Table; else "blackhole", "unreachable", "prohibit", "goto", "nop"
	Goto         int    // the priority of the rule to go on with
	Unknown      string // a selector that the front-end doesn't know
}

// Route is a route of a table.
type Route struct {
	Table    string
	Type     string // "unicast", "local", "broadcast", "multicast", "anycast", "blackhole", "unreachable", "prohibit", "throw"
	Dst      netip.Prefix
	From     netip.Prefix // of IPv6 only; invalid for all
	Metric   int
	Scope    Scope
	PrefSrc  netip.Addr
	Nexthops []Nexthop // one unless it is a multipath route
	Unknown  string    // what the front-end doesn't know
}

// Nexthop is where a route leads.
type Nexthop struct {
	Via    netip.Addr
	Dev    string
	Weight int
	Down   bool // "dead": the kernel does not use it
}
