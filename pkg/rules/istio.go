package rules

import (
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/redirect"
)

// The chains of istio. ISTIO_INBOUND and ISTIO_OUTPUT_DNS stand in several tables.
const (
	istioInbound    = "ISTIO_INBOUND"
	istioRedirect   = "ISTIO_REDIRECT"
	istioInRedirect = "ISTIO_IN_REDIRECT"
	istioOutput     = "ISTIO_OUTPUT"
	istioOutputDNS  = "ISTIO_OUTPUT_DNS"
	istioDivert     = "ISTIO_DIVERT"
	istioTProxy     = "ISTIO_TPROXY"
	istioDrop       = "ISTIO_DROP"
)

const (
	tproxyMark  = 1337 // packets of connections that the transparent listener serves
	outMark     = 1338 // the proxy's own packets on lo
	tproxyTable = 133  // istio's INBOUND_ROUTE_TABLE
	lo          = OutInterface("lo")
	dnsPort     = 53
)

// The conntrack zones that keep an application's query and the proxy's own, which may have the same ports, apart.
const (
	zoneProxy Zone = 1
	zoneApp   Zone = 2
)

var notLocalhost = Destination{Prefixes: redirect.Localhost, Not: true}

// owners match the proxy's own packets: by each of its users, then by each of its groups.
func owners(p redirect.IstioProxy) []Match {
	var out []Match
	for _, uid := range p.UIDs {
		out = append(out, OwnerUID{ID: uid})
	}
	for _, gid := range p.GIDs {
		out = append(out, OwnerGID{ID: gid})
	}
	return out
}

// istio emits the rules in the order in which istio-iptables does.
func (b *builder) istio(p redirect.Istio) {
	// 127.0.0.6 is lo's as it is, ::6 is not: the proxy connects to the application from there, and istio-validation connects to it.
	b.rs.Setup.Loopback = []netip.Prefix{redirect.Passthrough[1]}
	gate := b.gate(p.AfterProxyStart, owners(p.Proxy)...)
	b.istioInterfaces(p)
	if p.DropInvalid {
		b.chains(Mangle, istioDrop)
		b.append(Mangle, Prerouting, "packets of no known connection are dropped", Jump(istioDrop), CTState{Invalid})
		b.append(Mangle, istioDrop, "packets of no known connection are dropped", Drop{})
	}
	b.chains(Nat, istioInbound, istioRedirect, istioInRedirect, istioOutput)
	b.append(Nat, istioInbound, "the proxy serves its tunnel port itself", Return{}, TCP, DstPort{Port: p.Proxy.Tunnel})
	b.append(Nat, istioRedirect, "outbound connections go to the proxy's outbound listener", Redirect(p.Proxy.Outbound), TCP)
	b.append(Nat, istioInRedirect, "inbound connections go to the proxy's inbound listener", Redirect(p.Proxy.Inbound), TCP)
	b.istioInbound(p)
	if p.AfterProxyStart {
		for _, owner := range owners(p.Proxy) {
			b.append(Nat, Output, "istio-validation, which runs as the proxy's user, needs no proxy to pass", Jump(istioOutput), lo, owner)
		}
	}
	b.append(Nat, Output, "every outbound packet that begins a connection is looked at", Jump(istioOutput), gate...)
	b.istioOutbound(p)
	if p.DNSCapture {
		b.istioDNS(p)
	}
	if p.TProxy {
		b.istioTProxyTail(p)
		b.rs.Setup.Routes = []LocalRoute{{tproxyMark, tproxyTable}}
	}
}

func (b *builder) istioInterfaces(p redirect.Istio) {
	tables := []Table{Nat}
	if p.TProxy {
		tables = append(tables, Mangle)
	}
	for _, i := range p.ExcludeInterfaces {
		for _, t := range tables {
			b.append(t, Prerouting, "interface excluded by "+i.Origin, Return{}, InInterface(i.Name))
			b.append(t, Output, "interface excluded by "+i.Origin, Return{}, OutInterface(i.Name))
		}
	}
	for _, i := range p.VirtualInterfaces {
		b.insert(Nat, Prerouting, 1, "what comes from a virtual machine is not inbound: "+i.Origin, Return{}, InInterface(i.Name))
	}
}

func (b *builder) istioInbound(p redirect.Istio) {
	if !p.Inbound.All && len(p.Inbound.IncludePorts) == 0 {
		return
	}
	table := Nat
	if p.TProxy {
		table = Mangle
		b.chains(Mangle, istioInbound, istioDivert, istioTProxy)
		b.append(Mangle, istioDivert, "packets of a connection that the proxy serves stay with it", SetMark(tproxyMark))
		b.append(Mangle, istioDivert, "packets of a connection that the proxy serves stay with it", Accept{})
		b.append(Mangle, istioTProxy, "inbound connections go to the proxy's transparent listener", TProxy{Port: p.Proxy.Inbound, Mark: tproxyMark}, notLocalhost, TCP)
	}
	b.append(table, Prerouting, "every inbound TCP connection is looked at", Jump(istioInbound), TCP)
	if p.Inbound.All {
		for _, port := range p.Inbound.ExcludePorts {
			b.append(table, istioInbound, "port excluded by "+port.Origin, Return{}, TCP, DstPort{Port: port.Number})
		}
		b.istioCapture(p, "everything else goes to the proxy", TCP)
	}
	for _, port := range p.Inbound.IncludePorts {
		b.istioCapture(p, "port included by "+port.Origin, TCP, DstPort{Port: port.Number})
	}
}

// istioCapture gives inbound packets to the proxy.
func (b *builder) istioCapture(p redirect.Istio, why string, m ...Match) {
	if !p.TProxy {
		b.append(Nat, istioInbound, why, Jump(istioInRedirect), m...)
		return
	}
	b.append(Mangle, istioInbound, why, Jump(istioDivert), append(slices.Clip(m), CTState{Related, Established})...)
	b.append(Mangle, istioInbound, why, Jump(istioTProxy), m...)
}

func (b *builder) istioOutbound(p redirect.Istio) {
	out := func(why string, t Target, m ...Match) { b.append(Nat, istioOutput, why, t, m...) }
	for _, port := range p.Outbound.ExcludePorts {
		out("port excluded by "+port.Origin, Return{}, TCP, DstPort{Port: port.Number})
		out("port excluded by "+port.Origin, Return{}, UDP, DstPort{Port: port.Number})
	}
	out("the proxy connects to the application without a listener of its own", Return{}, Source{redirect.Passthrough}, lo)
	for _, uid := range p.Proxy.UIDs {
		b.istioOwner(p, true, func(not bool) Match { return OwnerUID{uid, not} })
	}
	for _, gid := range p.Proxy.GIDs {
		b.istioOwner(p, false, func(not bool) Match { return OwnerGID{gid, not} })
	}
	for _, u := range p.Outbound.ExcludeUsers {
		out(u.Origin+" goes direct", Return{}, OwnerUID{ID: u.UID})
	}
	if p.DNSCapture {
		b.chains(Nat, istioOutputDNS)
		out("DNS queries go to the proxy", Jump(istioOutputDNS))
	}
	out("connections within the pod stay within it", Return{}, Destination{Prefixes: redirect.Localhost})
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		out("range excluded by "+g.origin, Return{}, Destination{Prefixes: g.prefixes})
	}
	for _, port := range p.Outbound.IncludePorts {
		out("port included by "+port.Origin, Jump(istioRedirect), TCP, DstPort{Port: port.Number})
	}
	b.istioIncluded(p)
}

// istioOwner tells the proxy's own connections from the application's, by user or by group.
func (b *builder) istioOwner(p redirect.Istio, byUser bool, owner func(not bool) Match) {
	selfCall := []Match{notLocalhost, lo, TCP, DstPort{p.Proxy.Tunnel, true}, owner(false)}
	within := []Match{lo, owner(true)}
	if p.DNSCapture {
		if byUser {
			selfCall[3] = DstPorts{[]uint16{dnsPort, p.Proxy.Tunnel}, true}
		}
		within = []Match{lo, TCP, DstPort{dnsPort, true}, owner(true)}
	}
	b.append(Nat, istioOutput, "the proxy's calls to the pod's own service come back in through its inbound listener", Jump(istioInRedirect), selfCall...)
	if !p.Outbound.Loopback() {
		b.append(Nat, istioOutput, "the application's connections within the pod stay within it", Return{}, within...)
	}
	b.append(Nat, istioOutput, "the proxy's own connections leave the pod", Return{}, owner(false))
}

func (b *builder) istioIncluded(p redirect.Istio) {
	virtual := func(why string, m ...Match) {
		for _, i := range p.VirtualInterfaces {
			b.insert(Nat, Prerouting, 1, why+", from a virtual machine too", Jump(istioRedirect), append(slices.Clip(m), InInterface(i.Name))...)
		}
	}
	if p.Outbound.All {
		b.append(Nat, istioOutput, "everything else goes to the proxy", Jump(istioRedirect))
		virtual("everything else goes to the proxy")
		return
	}
	for _, r := range p.Outbound.IncludeRanges {
		to := Destination{Prefixes: []netip.Prefix{r.Prefix}}
		virtual("range included by "+r.Origin, to)
		b.append(Nat, istioOutput, "range included by "+r.Origin, Jump(istioRedirect), to)
	}
}

// istioDNS captures queries over UDP and TCP. An application's query and the one that the proxy makes because of it may
// have the same addresses and ports: zones keep them apart.
func (b *builder) istioDNS(p redirect.Istio) {
	b.chains(Raw, istioOutputDNS, istioInbound)
	for _, protocol := range []Protocol{TCP, UDP} {
		b.append(Nat, istioOutputDNS, "DNS queries go to the proxy's DNS listener", Redirect(p.Proxy.DNS), protocol, DstPort{Port: dnsPort})
	}
	b.append(Raw, Output, "DNS queries are tracked in zones of their own", Jump(istioOutputDNS))
	for _, owner := range owners(p.Proxy) {
		b.append(Raw, istioOutputDNS, "the proxy's own queries", zoneProxy, UDP, DstPort{Port: dnsPort}, owner)
		b.append(Raw, istioOutputDNS, "the proxy's answers to the application", zoneApp, UDP, SrcPort(p.Proxy.DNS), owner)
	}
	b.append(Raw, Prerouting, "answers to the proxy's queries are tracked in its zone", Jump(istioInbound))
	b.append(Raw, istioOutputDNS, "the application's queries", zoneApp, UDP, DstPort{Port: dnsPort})
	b.append(Raw, istioInbound, "answers to the proxy's own queries", zoneProxy, UDP, SrcPort(dnsPort))
}

// istioTProxyTail keeps the marks of connections that the transparent listener serves, on the way back as well.
func (b *builder) istioTProxyTail(p redirect.Istio) {
	b.chains(Mangle, istioInbound)
	b.append(Mangle, Prerouting, "a connection remembers that the transparent listener serves it", SaveMark{}, TCP, Mark{Value: tproxyMark})
	b.append(Mangle, Output, "the proxy's connections to the application keep their mark", Return{}, lo, TCP, Mark{Value: tproxyMark})
	for _, owner := range owners(p.Proxy) {
		b.append(Mangle, Output, "the proxy's own packets on lo are told from the application's", SetMark(outMark), notLocalhost, lo, TCP, owner)
	}
	b.append(Mangle, Output, "answers of a connection that the transparent listener serves find back to it", RestoreMark{}, TCP, ConnMark(tproxyMark))
	b.insert(Mangle, istioInbound, 1, "it has been through the proxy", Return{}, TCP, Mark{Value: tproxyMark})
	b.insert(Mangle, istioInbound, 2, "the proxy connects to the application without a listener of its own", Return{}, Source{redirect.Passthrough}, InInterface("lo"), TCP)
	b.insert(Mangle, istioInbound, 3, "connections within the pod stay within it", Return{}, InInterface("lo"), TCP, Mark{outMark, true})
}
