package trace

import (
	"cmp"
	"net/netip"
	"slices"
)

// RouteQuery is what routing looks at.
type RouteQuery struct {
	Family       Family
	Src, Dst     netip.Addr // Src is invalid if it is not chosen yet
	IIF, OIF     string     // IIF is "" for a packet of this namespace, OIF unless its socket is bound to an interface
	Mark, UID    uint32
	Protocol     uint8
	Sport, Dport uint16
}

// RouteResult is where a packet goes.
type RouteResult struct {
	// Type is "unicast", "local", "broadcast", "multicast", "anycast", "blackhole", "unreachable", "prohibit", or "none".
	Type    string
	Dev     string     // Loopback if the packet stays here
	Via     netip.Addr // invalid if the destination is on the link
	PrefSrc netip.Addr // the source that the kernel chooses for a packet of this namespace without one
	Table   string     // that has the route
	Route   *Route     // nil if a rule decided, or the kind of the address
	Several []Nexthop  // of a multipath route; Dev and Via are then those of the first
	Unknown string     // why it can't be told
}

// The types of routes that the walk and the lookup tell apart.
const (
	typeUnicast   = "unicast"
	typeLocal     = "local"
	typeBroadcast = "broadcast"
	typeMulticast = "multicast"
	typeThrow     = "throw"
	typeNone      = "none"
)

const (
	tableLocal   = "local"
	tableMain    = "main"
	tableDefault = "default"
)

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Lookup routes a packet as the kernel does: by the rules in the order of their priority, in each table the longest prefix,
// then the lowest metric. It does not know which neighbors answer, which the kernel prefers among IPv6 routes that are alike.
func (r *Routing) Lookup(q RouteQuery) RouteResult {
	if res, decided := r.beforeTables(q); decided {
		return res
	}
	res := r.byRules(q)
	if res.Type == typeNone && r.hasAddr(q.Family) && !r.hasRoute(q.Family) {
		res = RouteResult{Unknown: "the routes of family " + string(q.Family) + " are not known"}
	}
	if res.Unknown != "" {
		return res
	}
	if q.Family == IP {
		res = r.likeIPv4(q, res)
	}
	if q.IIF != "" {
		res.PrefSrc = netip.Addr{}
	}
	return res
}

// likeIPv4 is what IPv4 alone does with the result of the tables (ip_route_output_key_hash_rcu).
func (r *Routing) likeIPv4(q RouteQuery, res RouteResult) RouteResult {
	if q.OIF != "" && q.IIF == "" && len(res.devices()) == 0 && res.Type != typeLocal {
		// A socket that is bound to an interface reaches everything on its link.
		res = RouteResult{Type: typeUnicast, Dev: q.OIF, PrefSrc: r.source4(q.OIF, netip.Addr{}, ScopeLink)}
	}
	switch {
	case res.Type != typeUnicast:
	case q.Dst == limitedBroadcast:
		res.Type, res.Via = typeBroadcast, netip.Addr{}
	case q.Dst.IsMulticast():
		res.Type = typeMulticast
		if res.Route != nil && res.Route.Dst.Bits() < 4 {
			res.Via = netip.Addr{} // a default route's gateway does not get multicasts
		}
	}
	return res
}

func (res RouteResult) devices() []Nexthop {
	if res.Route == nil {
		return nil
	}
	return res.Route.Nexthops
}

// beforeTables decides what the tables don't, and what can't be told as they are not known.
func (r *Routing) beforeTables(q RouteQuery) (res RouteResult, decided bool) {
	switch {
	case !q.Dst.IsValid():
		return RouteResult{Unknown: "the destination is not known"}, true
	case q.IIF != "" && q.Dst == limitedBroadcast:
		return RouteResult{Type: typeBroadcast, Dev: Loopback}, true
	case q.IIF != "" && q.Dst.IsMulticast():
		return RouteResult{Unknown: "it is not known whether a process here has joined the group " + q.Dst.String()}, true
	case r.RoutesKnown && r.hasLocal(q.Family):
		return RouteResult{}, false
	}
	kind, known := r.Type(q.Dst, "")
	switch {
	case kind == typeLocal:
		return RouteResult{Type: typeLocal, Dev: Loopback, PrefSrc: q.Dst, Table: tableLocal}, true
	case !r.RoutesKnown:
		return RouteResult{Unknown: "the routes are not known"}, true
	case !known:
		return RouteResult{Unknown: "it is not known whether " + q.Dst.String() + " is an address of this namespace"}, true
	}
	return RouteResult{}, false
}

// hasLocal says whether the table local of a family is known.
func (r *Routing) hasLocal(f Family) bool {
	return slices.ContainsFunc(r.Routes, func(route Route) bool { return route.family() == f && route.Table == tableLocal })
}

// hasRoute says whether the routes of a family are known: where it has an address, it has a route.
func (r *Routing) hasRoute(f Family) bool {
	return slices.ContainsFunc(r.Routes, func(route Route) bool { return route.family() == f && route.Table != tableLocal })
}

func (r *Routing) hasAddr(f Family) bool {
	return slices.ContainsFunc(r.Links, func(l Link) bool {
		return l.Name != Loopback && slices.ContainsFunc(l.Addrs, func(a LinkAddr) bool { return familyOf(a.Addr()) == f })
	})
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IP
	}
	return IP6
}

func (r Route) family() Family { return familyOf(r.Dst.Addr()) }

// kernelRules are the rules of a new network namespace.
var kernelRules = []RoutingRule{
	{Priority: 0, UIDHi: ^uint32(0), Table: tableLocal},
	{Priority: 32766, UIDHi: ^uint32(0), Table: tableMain},
	{Priority: 32767, UIDHi: ^uint32(0), Table: tableDefault},
}

func (r *Routing) rules(f Family) []RoutingRule {
	var own []RoutingRule
	for _, rule := range r.Rules {
		if rule.Family == f {
			own = append(own, rule)
		}
	}
	if own == nil {
		return kernelRules
	}
	return own
}

func (r *Routing) byRules(q RouteQuery) RouteResult {
	from := 0 // the priority that "goto" leads to
	for _, rule := range r.rules(q.Family) {
		if rule.Priority < from || rule.selects(q) == rule.Not {
			continue
		}
		switch {
		case rule.Unknown != "":
			return RouteResult{Unknown: "it is not known whether the routing rule matches that has " + rule.Unknown}
		case rule.Action == "nop":
			continue
		case rule.Action == "goto":
			from = rule.Goto
			continue
		case rule.Action != "":
			return RouteResult{Type: rule.Action}
		}
		if res := r.inTable(q, rule); res.Type != typeThrow {
			return res
		}
	}
	return RouteResult{Type: typeNone}
}

func (rule RoutingRule) selects(q RouteQuery) bool {
	iif, uid := q.IIF, uint32(0)
	if iif == "" {
		iif, uid = Loopback, q.UID
	}
	return in(rule.From, q.Src) && in(rule.To, q.Dst) && (rule.IIF == "" || rule.IIF == iif) && (rule.OIF == "" || rule.OIF == q.OIF) &&
		(q.Mark^rule.Mark)&rule.Mask == 0 && rule.UIDLo <= uid && uid <= rule.UIDHi &&
		(rule.Protocol == 0 || rule.Protocol == q.Protocol) && between(rule.Sport, q.Sport) && between(rule.Dport, q.Dport)
}

func in(p netip.Prefix, a netip.Addr) bool { return !p.IsValid() || p.Bits() == 0 || p.Contains(a) }

func between(ports [2]uint16, port uint16) bool {
	return ports[1] == 0 || ports[0] <= port && port <= ports[1]
}

// inTable returns a result of type "throw" if the next rule is to decide.
func (r *Routing) inTable(q RouteQuery, rule RoutingRule) RouteResult {
	for _, route := range r.candidates(q, rule.Table) {
		if route.Unknown != "" {
			return RouteResult{Unknown: "the route to " + route.Dst.String() + " has " + route.Unknown, Route: route}
		}
		usable := route.usable(q)
		if len(usable) == 0 && len(route.Nexthops) > 0 {
			continue
		}
		if route.isError() {
			return RouteResult{Type: route.Type, Table: rule.Table, Route: route}
		}
		if route.Dst.Bits() < rule.MinPrefix {
			return RouteResult{Type: typeThrow}
		}
		return r.result(q, rule.Table, route, usable)
	}
	return RouteResult{Type: typeThrow}
}

// candidates are the routes of a table that lead to the destination, the best first.
func (r *Routing) candidates(q RouteQuery, table string) []*Route {
	var all []*Route
	for i := range r.Routes {
		route := &r.Routes[i]
		if route.Table == table && route.Dst.Contains(q.Dst) && (!route.From.IsValid() || route.From.Contains(q.Src)) {
			all = append(all, route)
		}
	}
	slices.SortStableFunc(all, func(a, b *Route) int {
		return cmp.Or(b.Dst.Bits()-a.Dst.Bits(), b.From.Bits()-a.From.Bits(), a.Metric-b.Metric, q.preferred(b)-q.preferred(a))
	})
	return all
}

// preferred is 1 for an IPv6 route by the interface that the socket is bound to, or that the packet came in on.
func (q RouteQuery) preferred(route *Route) int {
	dev := cmp.Or(q.OIF, q.IIF)
	if q.Family == IP6 && dev != "" && slices.ContainsFunc(route.Nexthops, func(n Nexthop) bool { return n.Dev == dev }) {
		return 1
	}
	return 0
}

func (r *Route) isError() bool {
	switch r.Type {
	case typeUnicast, typeLocal, typeBroadcast, typeMulticast, "anycast":
		return false
	}
	return true
}

// usable returns the nexthops that the packet may take. IPv4 ignores the interface of a route that refuses packets, IPv6 the
// interface that a socket is bound to if it has a global destination and a source. A packet that came in for an IPv6 address
// that is not global, such as one that NAT sends to ::1, can go to the interface that it came in on only.
func (r *Route) usable(q RouteQuery) []Nexthop {
	dev := cmp.Or(q.OIF, q.IIF)
	strict := q.OIF != "" && (q.Family == IP && !r.isError() || q.Family == IP6 && (!q.Src.IsValid() || linkOnly(q.Dst))) ||
		q.IIF != "" && q.Family == IP6 && linkOnly(q.Dst)
	var all []Nexthop
	for _, n := range r.Nexthops {
		if !n.Down && (!strict || n.Dev == dev) {
			all = append(all, n)
		}
	}
	return all
}

func linkOnly(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a.IsMulticast() || a == netip.IPv6Loopback()
}

func (r *Routing) result(q RouteQuery, table string, route *Route, usable []Nexthop) RouteResult {
	res := RouteResult{Type: route.Type, Table: table, Route: route, PrefSrc: route.PrefSrc}
	if len(usable) > 0 {
		res.Dev, res.Via = usable[0].Dev, usable[0].Via
	}
	if len(usable) > 1 {
		res.Several = usable
	}
	if q.Family == IP {
		if kind, _ := r.Type(res.Via, ""); kind == typeLocal {
			res.Via = netip.Addr{} // a gateway that is this namespace's own means that the destination is on the link
		}
	}
	if !res.PrefSrc.IsValid() {
		res.PrefSrc = r.source(q, res)
	}
	if res.Type == typeLocal || res.Type == "anycast" || res.Type == typeBroadcast && q.IIF != "" {
		res.Dev = Loopback
	}
	return res
}

func (r *Routing) source(q RouteQuery, res RouteResult) netip.Addr {
	switch {
	case q.Family == IP6:
		return r.source6(res.Dev, q.Dst)
	case res.Type == typeLocal:
		return q.Dst
	}
	return r.source4(res.Dev, res.Via, res.Route.Scope)
}

// Type is the type of an address (addrtype, nft's fib type), limited to the addresses of dev unless that is "": for IPv4 what
// the table local has, for IPv6 what routing without rules has.
func (r *Routing) Type(a netip.Addr, dev string) (kind string, known bool) {
	switch {
	case !a.IsValid():
		return "", false
	case a.IsMulticast():
		return typeMulticast, true
	case a == limitedBroadcast || a == netip.IPv4Unspecified():
		return typeBroadcast, true
	case a.IsLoopback() && (dev == "" || dev == Loopback):
		return typeLocal, true
	}
	if r.hasLocal(familyOf(a)) {
		return r.typeByTable(a, dev), true
	}
	for _, l := range r.Links {
		for _, own := range l.Addrs {
			if own.Addr() == a && (dev == "" || dev == l.Name) {
				return typeLocal, true
			}
		}
	}
	return typeUnicast, r.LinksKnown
}

func (r *Routing) typeByTable(a netip.Addr, dev string) string {
	q := RouteQuery{Family: familyOf(a), Dst: a}
	for _, route := range r.candidates(q, tableLocal) {
		if dev == "" || slices.ContainsFunc(route.Nexthops, func(n Nexthop) bool { return n.Dev == dev }) {
			return route.Type
		}
	}
	if q.Family == IP || dev != "" || !r.hasRoute(IP6) {
		return typeUnicast
	}
	switch res := r.byRules(q); {
	case res.Type == typeNone:
		return "unreachable"
	case res.Type != "":
		return res.Type
	}
	return typeUnicast
}
