package envoy

import (
	"net/netip"
	"slices"
	"strings"
)

// traffic is what Envoy's inspectors may find in the first bytes of a connection.
type traffic struct {
	name                  string
	transport, serverName string
	application           string
}

var (
	plainKind = traffic{name: "neither HTTP nor TLS", transport: "raw_buffer"}
	httpKind  = traffic{name: "HTTP", transport: "raw_buffer", application: "http/1.1"}
	tlsKind   = traffic{name: "TLS", transport: "tls"}
)

// tlsTo is TLS for a server name.
func tlsTo(name string) traffic {
	return traffic{name: "TLS for " + name, transport: "tls", serverName: strings.Replace(name, "*.", "any.", 1)}
}

// listenerAt finds the listener that accepts connections at a port of the pod.
func (c *Config) listenerAt(port uint16) *listener {
	for i, l := range c.listeners {
		if slices.ContainsFunc(l.addresses(), func(a netip.AddrPort) bool { return a.Port() == port }) {
			return &c.listeners[i]
		}
	}
	return nil
}

// handOff finds the listener that gets a connection to the address from a listener with use_original_dst: the one at just this
// address, else the one at all addresses of the port.
func (c *Config) handOff(to netip.AddrPort) *listener {
	candidates := []netip.AddrPort{to, netip.AddrPortFrom(netip.IPv6Unspecified(), to.Port())}
	if to.Addr().Is4() {
		candidates = slices.Insert(candidates, 1, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port()))
	}
	for _, at := range candidates {
		for i, l := range c.listeners {
			if slices.Contains(l.addresses(), at) {
				return &c.listeners[i]
			}
		}
	}
	return nil
}

// choose finds the filter chain as Envoy does: by the destination's port, the longest prefix of its address, server name,
// transport protocol and application protocol, in this order and without going back. Nil means that Envoy closes the connection.
func (l *listener) choose(to netip.AddrPort, t traffic) *chain {
	chains := mostSpecific(l.FilterChains, func(m chainMatch) int {
		return rank(m.DestinationPort != 0, m.DestinationPort == to.Port())
	})
	for _, score := range []func(chainMatch) int{
		func(m chainMatch) int { return m.prefix(to.Addr()) },
		func(m chainMatch) int { return m.serverName(t.serverName) },
		func(m chainMatch) int { return rank(m.TransportProtocol != "", m.TransportProtocol == t.transport) },
		func(m chainMatch) int {
			return rank(m.ApplicationProtocols != nil, slices.Contains(m.ApplicationProtocols, t.application))
		},
	} {
		chains = mostSpecific(chains, score)
	}
	if len(chains) == 0 {
		return l.DefaultChain
	}
	return &chains[0]
}

// noMatch is the score of a chain that does not take the connection.
const noMatch = -1

func rank(asked, met bool) int {
	switch {
	case !asked:
		return 0
	case met:
		return 1
	}
	return noMatch
}

// mostSpecific keeps the chains with the highest score.
func mostSpecific(chains []chain, score func(chainMatch) int) (best []chain) {
	top := noMatch
	for _, c := range chains {
		switch s := score(c.Match); {
		case s == noMatch, s < top:
		case s > top:
			top, best = s, []chain{c}
		default:
			best = append(best, c)
		}
	}
	return best
}

// prefix scores by the length of the longest prefix that has the address.
func (m chainMatch) prefix(a netip.Addr) int {
	if len(m.PrefixRanges) == 0 {
		return 0
	}
	top := noMatch
	for _, r := range m.PrefixRanges {
		addr, err := netip.ParseAddr(r.AddressPrefix)
		if err != nil {
			continue
		}
		if p, err := addr.Prefix(r.PrefixLen); err == nil && p.Contains(a) {
			top = max(top, 1+r.PrefixLen)
		}
	}
	return top
}

// serverName scores an exact name above a wildcard, and a longer wildcard above a shorter one.
func (m chainMatch) serverName(name string) int {
	if len(m.ServerNames) == 0 {
		return 0
	}
	top := noMatch
	for _, s := range m.ServerNames {
		suffix, wildcard := strings.CutPrefix(s, "*")
		switch {
		case s == name:
			top = 1 << 16
		case wildcard && strings.HasSuffix(name, suffix):
			top = max(top, 1+len(suffix))
		}
	}
	return top
}
