package redirect

import (
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// OSM is the policy of Open Service Mesh and its successors: two chains select connections, two redirect them.
type OSM struct {
	Chains Chains
	Proxy  Proxy
	// SelfCalls sends the proxy's calls to the pod's own service through its inbound listener; everything else on lo stays
	// direct.
	SelfCalls bool
	Outbound  Outbound
	Inbound   Inbound
	// PodIPs has the proxy reach the application by the pod's address instead of localhost.
	PodIPs []netip.Addr
	// LocalDNS is the IPv4 loopback address on which the proxy answers DNS queries; the zero Addr leaves queries alone.
	LocalDNS netip.Addr
	// Gated leaves outbound connections alone until the proxy sends its first packet out of the pod.
	Gated bool
}

// Chains are the names of the chains, as the mesh's own guides give them.
type Chains struct {
	Inbound          string
	InboundRedirect  string
	Outbound         string
	OutboundRedirect string
}

// Outbound says which of the pod's own connections stay direct.
type Outbound struct {
	ExcludeRanges     []Range
	ExcludePorts      []Port
	ExcludeInterfaces []Interface
	ExcludeUsers      []User
	// IncludeRanges, if there are any, limit redirection to themselves.
	IncludeRanges []Range
}

// Inbound says which connections to the pod stay direct.
type Inbound struct {
	// ProxyPorts are served by the proxy itself (metrics, probes) and never redirected.
	ProxyPorts        []uint16
	ExcludePorts      []Port
	ExcludeInterfaces []Interface
}

// Sidecar implements Policy.
func (o OSM) Sidecar() Proxy { return o.Proxy }

// Validate implements Policy.
func (o OSM) Validate() error {
	var wrong problems
	seen := map[string]bool{}
	for _, name := range []string{o.Chains.Inbound, o.Chains.InboundRedirect, o.Chains.Outbound, o.Chains.OutboundRedirect} {
		if !isChain(name) {
			wrong.add("chain %q: a name is 1 to %d of A-Z, a-z, 0-9, _ and -", name, maxChain)
		} else if seen[name] {
			wrong.add("chain %q stands for two chains", name)
		}
		seen[name] = true
	}
	if o.Proxy.UID == 0 {
		wrong.add("proxy UID 0: root's own connections would all bypass the proxy")
	}
	listeners := []uint16{o.Proxy.Inbound, o.Proxy.Outbound, o.Proxy.Admin}
	if o.LocalDNS.IsValid() {
		listeners = append(listeners, o.Proxy.DNS)
	}
	wrong.listeners(listeners...)
	wrong.ports(o.Outbound.ExcludePorts, o.Inbound.ExcludePorts)
	wrong.ranges(o.Outbound.ExcludeRanges, o.Outbound.IncludeRanges)
	wrong.interfaces(o.Outbound.ExcludeInterfaces, o.Inbound.ExcludeInterfaces)
	for _, ip := range o.PodIPs {
		if !ip.IsValid() || ip.Is4In6() || ip.IsUnspecified() || ip.IsLoopback() {
			wrong.add("pod address %s: the application can't be reached by it", ip)
		}
	}
	return wrong.err()
}

// Ruleset implements Policy.
func (o OSM) Ruleset() rules.Ruleset {
	b := &builder{}
	b.osm(o)
	return b.rs
}

func (b *builder) osm(p OSM) {
	c := p.Chains
	gate := b.gate(p.Gated, p.Proxy)
	b.chains(rules.Nat, c.Inbound, c.InboundRedirect, c.Outbound, c.OutboundRedirect)

	b.append(rules.Nat, c.OutboundRedirect, "outbound connections go to the proxy's outbound listener", rules.Redirect(p.Proxy.Outbound), rules.TCP)
	b.append(rules.Nat, c.OutboundRedirect, "never reached, kept as the mesh has it", rules.Accept{}, rules.TCP, rules.DstPort{Port: p.Proxy.Admin})
	b.append(rules.Nat, rules.Output, "every outbound TCP connection is looked at", rules.Jump(c.Outbound), append([]rules.Match{rules.TCP}, gate...)...)
	if p.SelfCalls {
		b.append(rules.Nat, c.Outbound, "the proxy's calls to the pod's own service come back in through its inbound listener", rules.Jump(c.InboundRedirect),
			rules.Destination{Prefixes: localhost, Not: true}, rules.OutInterface("lo"), rules.OwnerUID{ID: p.Proxy.UID})
		b.append(rules.Nat, c.Outbound, "the application's connections within the pod stay within it", rules.Return{},
			rules.OutInterface("lo"), rules.OwnerUID{ID: p.Proxy.UID, Not: true})
	}
	b.append(rules.Nat, c.Outbound, "the proxy's own connections leave the pod", rules.Return{}, rules.OwnerUID{ID: p.Proxy.UID})
	b.append(rules.Nat, c.Outbound, "connections within the pod stay within it", rules.Return{}, rules.Destination{Prefixes: localhost})
	if p.SelfCalls {
		b.osmOutboundAppended(p)
	} else {
		b.osmOutboundInserted(p)
	}
	b.osmInbound(p)
	for i, ip := range p.PodIPs {
		b.insert(rules.Nat, rules.Output, 1+i, "the proxy reaches the application by the pod's address", rules.DNAT{Addr: ip},
			rules.Destination{Prefixes: []netip.Prefix{localhostOf(ip)}}, rules.OutInterface("lo"), rules.TCP, rules.OwnerUID{ID: p.Proxy.UID})
	}
	if p.LocalDNS.IsValid() {
		query := []rules.Match{rules.Destination{Prefixes: []netip.Prefix{netip.PrefixFrom(p.LocalDNS, 32)}}, rules.UDP, rules.DstPort{Port: dnsPort}}
		b.append(rules.Nat, rules.Output, "DNS queries go to the proxy's DNS listener", rules.DNAT{Addr: p.LocalDNS, Port: p.Proxy.DNS}, append(query, gate...)...)
	}
}

func localhostOf(ip netip.Addr) netip.Prefix {
	i := slices.IndexFunc(localhost, func(p netip.Prefix) bool { return rules.Of(p.Addr()) == rules.Of(ip) })
	return localhost[i]
}

// osmOutboundInserted excludes as the init container of the published guide does: it inserts each rule at the head of the
// chain, so that the last one comes first.
func (b *builder) osmOutboundInserted(p OSM) {
	b.append(rules.Nat, p.Chains.Outbound, "everything else goes to the proxy", rules.Jump(p.Chains.OutboundRedirect))
	for _, u := range p.Outbound.ExcludeUsers {
		b.insert(rules.Nat, p.Chains.Outbound, 1, u.Origin+" goes direct", rules.Return{}, rules.OwnerUID{ID: u.UID})
	}
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		slices.Reverse(g.prefixes)
		b.insert(rules.Nat, p.Chains.Outbound, 1, "range excluded by "+g.origin, rules.Return{}, rules.Destination{Prefixes: g.prefixes})
	}
	if ports := p.Outbound.ExcludePorts; len(ports) > 0 {
		b.insert(rules.Nat, p.Chains.Outbound, 1, "ports excluded by "+origins(ports), rules.Return{}, rules.TCP, rules.DstPorts{Ports: numbers(ports)})
	}
}

// osmOutboundAppended excludes as later versions do: behind the rules for the proxy's user and localhost.
func (b *builder) osmOutboundAppended(p OSM) {
	out, redirected := p.Chains.Outbound, rules.Jump(p.Chains.OutboundRedirect)
	for _, i := range p.Outbound.ExcludeInterfaces {
		b.append(rules.Nat, out, "interface excluded by "+i.Origin, rules.Return{}, rules.OutInterface(i.Name))
	}
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		b.append(rules.Nat, out, "range excluded by "+g.origin, rules.Return{}, rules.Destination{Prefixes: g.prefixes})
	}
	if ports := p.Outbound.ExcludePorts; len(ports) > 0 {
		b.append(rules.Nat, out, "ports excluded by "+origins(ports), rules.Return{}, rules.TCP, rules.DstPorts{Ports: numbers(ports)})
	}
	for _, u := range p.Outbound.ExcludeUsers {
		b.append(rules.Nat, out, u.Origin+" goes direct", rules.Return{}, rules.OwnerUID{ID: u.UID})
	}
	if len(p.Outbound.IncludeRanges) == 0 {
		b.append(rules.Nat, out, "everything else goes to the proxy", redirected)
		return
	}
	for _, g := range byOrigin(p.Outbound.IncludeRanges) {
		b.append(rules.Nat, out, "range included by "+g.origin, redirected, rules.Destination{Prefixes: g.prefixes})
	}
	b.append(rules.Nat, out, "nothing but the included ranges goes to the proxy", rules.Return{})
}

func (b *builder) osmInbound(p OSM) {
	in := p.Chains.Inbound
	b.append(rules.Nat, p.Chains.InboundRedirect, "inbound connections go to the proxy's inbound listener", rules.Redirect(p.Proxy.Inbound), rules.TCP)
	b.append(rules.Nat, rules.Prerouting, "every inbound TCP connection is looked at", rules.Jump(in), rules.TCP)
	for _, port := range p.Inbound.ProxyPorts {
		b.append(rules.Nat, in, "the proxy serves this port itself", rules.Return{}, rules.TCP, rules.DstPort{Port: port})
	}
	b.append(rules.Nat, in, "everything else goes to the proxy", rules.Jump(p.Chains.InboundRedirect), rules.TCP)
	for _, i := range p.Inbound.ExcludeInterfaces {
		b.insert(rules.Nat, in, 1, "interface excluded by "+i.Origin, rules.Return{}, rules.InInterface(i.Name))
	}
	if ports := p.Inbound.ExcludePorts; len(ports) > 0 {
		b.insert(rules.Nat, in, 1, "ports excluded by "+origins(ports), rules.Return{}, rules.TCP, rules.DstPorts{Ports: numbers(ports)})
	}
}
