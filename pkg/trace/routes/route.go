package routes

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/trace"
)

const (
	tableLocal   = "local"
	tableMain    = "main"
	tableDefault = "default"
)

type routeEntry struct {
	Type     string          `json:"type"`
	Dst      string          `json:"dst"`
	From     string          `json:"from"`
	TOS      json.RawMessage `json:"tos"`
	Table    json.RawMessage `json:"table"`
	Metric   int             `json:"metric"`
	Scope    json.RawMessage `json:"scope"`
	PrefSrc  string          `json:"prefsrc"`
	Pref     string          `json:"pref"`
	Nexthops []nexthop       `json:"nexthops"`
	nexthop
}

type nexthop struct {
	Gateway string          `json:"gateway"`
	Via     *via            `json:"via"`
	Dev     string          `json:"dev"`
	Weight  int             `json:"weight"`
	Flags   []string        `json:"flags"`
	Encap   json.RawMessage `json:"encap"`
}

type via struct {
	Host string `json:"host"`
}

func addRoutes(r *trace.Routing, list []routeEntry) error {
	for i, entry := range list {
		if entry.Dst == "" || entry.TOS != nil {
			continue
		}
		route, err := entry.read()
		if err != nil {
			return fmt.Errorf("route %d: %w", i+1, err)
		}
		r.Routes = append(r.Routes, route)
	}
	return nil
}

func (e routeEntry) read() (route trace.Route, err error) {
	route = trace.Route{Type: e.Type, Table: unquote(e.Table), Metric: e.Metric, Scope: scopes[unquote(e.Scope)]}
	if route.Type == "" {
		route.Type = "unicast"
	}
	if route.Table == "" {
		route.Table = tableMain
	}
	if route.Dst, err = e.prefix(e.Dst); err != nil {
		return route, err
	}
	if e.From != "" {
		if route.From, err = e.prefix(e.From); err != nil {
			return route, err
		}
	}
	route.PrefSrc, _ = parseAddr(e.PrefSrc)
	hops := e.Nexthops
	if len(hops) == 0 && e.Dev != "" {
		hops = []nexthop{e.nexthop}
	}
	for _, hop := range hops {
		if hop.Encap != nil {
			route.Unknown = "an encapsulation"
		}
		route.Nexthops = append(route.Nexthops, hop.read())
	}
	return route, nil
}

func (n nexthop) read() trace.Nexthop {
	read := trace.Nexthop{Dev: n.Dev, Weight: max(n.Weight, 1), Down: slices.Contains(n.Flags, "dead")}
	read.Via, _ = parseAddr(n.Gateway)
	if n.Via != nil {
		read.Via, _ = parseAddr(n.Via.Host)
	}
	return read
}

// prefix reads "default", an address or a prefix. IPv4 prefixes may lack their last octets no more: ip has printed them in full
// since it prints JSON.
func (e routeEntry) prefix(s string) (netip.Prefix, error) {
	if s == "default" {
		if e.isIPv6() {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Zone() == "" {
		return p.Masked(), nil
	}
	a, err := parseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no prefix", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// isIPv6 tells the family of a default route. A gateway of the other family is in "via".
func (e routeEntry) isIPv6() bool {
	if e.Pref != "" {
		return true
	}
	for _, s := range []string{e.Gateway, e.PrefSrc, e.From} {
		if a, err := parseAddr(s); err == nil {
			return a.Is6()
		}
	}
	for _, hop := range e.Nexthops {
		if a, err := parseAddr(hop.Gateway); err == nil {
			return a.Is6()
		}
	}
	return false
}

// parseAddr reads an address without a zone, which ip does not print.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" {
		err = fmt.Errorf("%q has a zone", s)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	return a.Unmap(), nil
}

func localRoute(kind string, dst netip.Prefix, dev string) trace.Route {
	return trace.Route{Table: tableLocal, Type: kind, Dst: dst, Scope: trace.ScopeHost, Nexthops: []trace.Nexthop{{Dev: dev, Weight: 1}}}
}
