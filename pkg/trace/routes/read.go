// Package routes reads what `ip -j route`, `ip -j address` and `ip -j rule` print into the routing of package trace. It is pure.
//
// ip prints the routes of both families with `ip -j route show table all`, and otherwise those of one: IPv4, or IPv6 with -6.
// It prints the rules of one family in any case. Several listings may follow one another in the data. ip does not print the
// family, so the addresses tell it. "default" without a gateway is of IPv6 if it has a preference ("pref"), which ip prints for
// each IPv6 route. A listing of rules without any address is of IPv4 if it has the table default, which is what the kernel
// starts with for IPv4 only.
//
// Left out are routes for a type of service, which a packet does not have unless its process asks for it.
package routes

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// The programs whose output the three inputs are.
const (
	routeCommand = "ip -j route show table all"
	addrCommand  = "ip -j address"
	ruleCommand  = "ip -j rule"
)

// Read reads the routes, the addresses and the rules; each may be nil, which is not known then. Where the routes don't have the
// table local, its routes follow from the addresses. Rules that are nil, or that lack a family, are those of a new namespace.
// The error names the input that is wrong, and the command that makes the right one. Equal data yields equal routing.
func Read(route, addr, rule []byte) (trace.Routing, error) {
	var r trace.Routing
	if addr != nil {
		if err := each(addr, addrCommand, func(l []link) error { r.Links = append(r.Links, readLinks(l)...); return nil }, "ifname"); err != nil {
			return trace.Routing{}, fmt.Errorf("read the addresses: %w", err)
		}
		r.LinksKnown = true
	}
	if route != nil {
		if err := each(route, routeCommand, func(l []routeEntry) error { return addRoutes(&r, l) }, "dst"); err != nil {
			return trace.Routing{}, fmt.Errorf("read the routes: %w", err)
		}
		r.RoutesKnown = true
	}
	if rule != nil {
		if err := each(rule, ruleCommand, func(l []ruleEntry) error { return addRules(&r, l) }, "priority"); err != nil {
			return trace.Routing{}, fmt.Errorf("read the rules: %w", err)
		}
	}
	r.Routes = append(r.Routes, localRoutes(&r)...)
	return r, nil
}

// each reads all lists in the data. Each entry must have the key.
func each[T any](data []byte, command string, add func([]T) error, key string) error {
	get := fmt.Sprintf("get the right file with `%s`", command)
	if start := bytes.TrimSpace(data); len(start) > 0 && start[0] != '[' && start[0] != '{' {
		return errors.New("this is not JSON: add -j, as in `" + command + "`")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	for first := true; ; first = false {
		var raw json.RawMessage
		switch err := decoder.Decode(&raw); {
		case errors.Is(err, io.EOF) && first:
			return errors.New("the file is empty: " + get)
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("the file is truncated after %d bytes: %s again", len(data), get)
		case err != nil:
			return fmt.Errorf("this is not JSON (%w): %s", err, get)
		}
		list, err := entries[T](raw, key)
		if err != nil {
			return fmt.Errorf("%w: %s", err, get)
		}
		if err := add(list); err != nil {
			return fmt.Errorf("%w: %s", err, get)
		}
	}
}

func entries[T any](raw json.RawMessage, key string) ([]T, error) {
	var keys []map[string]json.RawMessage
	if json.Unmarshal(raw, &keys) != nil {
		return nil, errors.New("this is another program's JSON, not a list of entries")
	}
	for i, entry := range keys {
		if entry == nil || len(entry) > 0 && entry[key] == nil {
			return nil, fmt.Errorf("this is another program's JSON: entry %d has no %q", i+1, key)
		}
	}
	var list []T
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("ip does not print this: %w", err)
	}
	return list, nil
}

type link struct {
	IfName   string     `json:"ifname"`
	Flags    []string   `json:"flags"`
	AddrInfo []linkAddr `json:"addr_info"`
}

type linkAddr struct {
	Family     string `json:"family"`
	Local      string `json:"local"`
	Address    string `json:"address"`
	Broadcast  string `json:"broadcast"`
	PrefixLen  int    `json:"prefixlen"`
	Scope      string `json:"scope"`
	Secondary  bool   `json:"secondary"`
	Tentative  bool   `json:"tentative"`
	DADFailed  bool   `json:"dadfailed"`
	Deprecated bool   `json:"deprecated"`
}

func readLinks(list []link) []trace.Link {
	var all []trace.Link
	for _, l := range list {
		if l.IfName == "" {
			continue // ip leaves an empty entry where a filter has left a link out
		}
		read := trace.Link{Name: l.IfName, Down: true}
		for _, flag := range l.Flags {
			read.Down = read.Down && flag != "UP"
		}
		for _, a := range l.AddrInfo {
			if addr, ok := a.read(); ok {
				read.Addrs = append(read.Addrs, addr)
			}
		}
		all = append(all, read)
	}
	return all
}

// A scope that ip knows by its number only is as good as global here.
var scopes = map[string]trace.Scope{"site": trace.ScopeSite, "link": trace.ScopeLink, "host": trace.ScopeHost}

func (a linkAddr) read() (read trace.LinkAddr, ok bool) {
	local, err := parseAddr(a.Local)
	if err != nil || a.PrefixLen < 0 || a.PrefixLen > local.BitLen() {
		return read, false
	}
	read.Prefix = netip.PrefixFrom(local, a.PrefixLen)
	read.Scope = scopes[a.Scope]
	read.NotSource = a.Secondary && local.Is4() || a.Tentative || a.DADFailed
	read.Deprecated = a.Deprecated
	read.Broadcast, _ = parseAddr(a.Broadcast)
	read.Peer, _ = parseAddr(a.Address)
	return read, true
}

// localRoutes returns the table local that the kernel makes of the addresses, for the families whose routes lack it.
func localRoutes(r *trace.Routing) []trace.Route {
	has := map[bool]bool{}
	for _, route := range r.Routes {
		if route.Table == tableLocal {
			has[route.Dst.Addr().Is4()] = true
		}
	}
	var all []trace.Route
	for _, l := range r.Links {
		for _, a := range l.Addrs {
			if !has[a.Addr().Is4()] {
				all = append(all, routesOf(l, a)...)
			}
		}
	}
	return all
}

func routesOf(l trace.Link, a trace.LinkAddr) []trace.Route {
	all := []trace.Route{localRoute("local", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), l.Name)}
	if a.Addr().Is6() || l.Down {
		return all
	}
	if a.Addr().IsLoopback() {
		all = append(all, localRoute("local", a.Masked(), l.Name))
	}
	if !a.NotSource && a.Bits() < 31 {
		last := trace.Prefix(a.Network()).Hi.Addr
		all = append(all, localRoute("broadcast", netip.PrefixFrom(last, 32), l.Name))
	}
	if a.Broadcast.IsValid() {
		all = append(all, localRoute("broadcast", netip.PrefixFrom(a.Broadcast, 32), l.Name))
	}
	return all
}

// unquote is a name or a number, which ip prints as either.
func unquote(raw json.RawMessage) string { return strings.Trim(string(raw), `"`) }
