package redirect

import (
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Istio is the policy of istio in sidecar mode.
type Istio struct {
	Proxy Proxy
	// TProxy hands inbound connections to a transparent listener, so that they keep their source address.
	TProxy   bool
	Outbound IstioOutbound
	Inbound  IstioInbound
	// ExcludeInterfaces are left alone in both directions.
	ExcludeInterfaces []Interface
	// VirtualInterfaces lead to a virtual machine in the pod: what comes in by them is outbound.
	VirtualInterfaces []Interface
	// DropInvalid drops inbound packets that connection tracking can't assign.
	DropInvalid bool
	// DNSCapture sends DNS queries to the proxy.
	DNSCapture bool
	// Gated leaves outbound connections alone until the proxy sends its first packet out of the pod.
	Gated bool
}

// IstioOutbound says which of the pod's own connections are redirected.
type IstioOutbound struct {
	// All redirects everything that is not excluded; otherwise only IncludeRanges are redirected.
	All           bool
	IncludeRanges []Range
	ExcludeRanges []Range
	// IncludePorts are redirected for every address.
	IncludePorts []Port
	ExcludePorts []Port
	ExcludeUsers []User
}

// IstioInbound says which connections to the pod are redirected.
type IstioInbound struct {
	// All redirects all ports but ExcludePorts; otherwise only IncludePorts are redirected, and ExcludePorts means nothing.
	All          bool
	IncludePorts []Port
	ExcludePorts []Port
}

// loopback reports whether an included range is one of loopback addresses: then lo can't be left alone.
func (o IstioOutbound) loopback() bool {
	return slices.ContainsFunc(o.IncludeRanges, func(r Range) bool { return r.Prefix.Addr().IsLoopback() })
}

// Sidecar implements Policy.
func (i Istio) Sidecar() Proxy { return i.Proxy }

// Validate implements Policy.
func (i Istio) Validate() error {
	var wrong problems
	if i.Proxy.UID == 0 || i.Proxy.GID == 0 {
		wrong.add("proxy UID or GID 0: root's own connections would all bypass the proxy")
	}
	wrong.listeners(i.Proxy.Inbound, i.Proxy.Outbound, i.Proxy.Tunnel, i.Proxy.DNS)
	wrong.ports(i.Outbound.IncludePorts, i.Outbound.ExcludePorts, i.Inbound.IncludePorts, i.Inbound.ExcludePorts)
	wrong.ranges(i.Outbound.IncludeRanges, i.Outbound.ExcludeRanges)
	wrong.interfaces(i.ExcludeInterfaces, i.VirtualInterfaces)
	return wrong.err()
}

// passthrough are the addresses from which the proxy connects to an application for which it has no listener.
var passthrough = []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), netip.MustParsePrefix("::6/128")}

// localhost are the addresses that stay within the pod.
var localhost = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}

// istio's chains. ISTIO_INBOUND and ISTIO_OUTPUT_DNS are in several tables.
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
	lo          = rules.OutInterface("lo")
	dnsPort     = 53
)

// The conntrack zones keep an application's query and the proxy's own apart: both may have the same ports.
const (
	zoneProxy rules.Zone = 1
	zoneApp   rules.Zone = 2
)

var notLocalhost = rules.Destination{Prefixes: localhost, Not: true}

// Ruleset implements Policy.
func (i Istio) Ruleset() rules.Ruleset {
	b := &builder{}
	b.istio(i)
	return b.rs
}

// istio emits the rules in the order in which istio-iptables does.
func (b *builder) istio(p Istio) {
	// The proxy connects to the application from 127.0.0.6 or ::6, and istio-validation connects to them. lo lacks ::6 only.
	b.rs.Setup.Loopback = []netip.Prefix{passthrough[1]}
	gate := b.gate(p.Gated, p.Proxy)
	b.istioInterfaces(p)
	if p.DropInvalid {
		b.chains(rules.Mangle, istioDrop)
		b.append(rules.Mangle, rules.Prerouting, "packets of no known connection are dropped", rules.Jump(istioDrop), rules.CTState{rules.Invalid})
		b.append(rules.Mangle, istioDrop, "packets of no known connection are dropped", rules.Drop{})
	}
	b.chains(rules.Nat, istioInbound, istioRedirect, istioInRedirect, istioOutput)
	b.append(rules.Nat, istioInbound, "the proxy serves its tunnel port itself", rules.Return{}, rules.TCP, rules.DstPort{Port: p.Proxy.Tunnel})
	b.append(rules.Nat, istioRedirect, "outbound connections go to the proxy's outbound listener", rules.Redirect(p.Proxy.Outbound), rules.TCP)
	b.append(rules.Nat, istioInRedirect, "inbound connections go to the proxy's inbound listener", rules.Redirect(p.Proxy.Inbound), rules.TCP)
	b.istioInbound(p)
	if p.Gated {
		for _, owner := range p.Proxy.owners() {
			b.append(rules.Nat, rules.Output, "istio-validation, which runs as the proxy's user, needs no proxy to pass", rules.Jump(istioOutput), lo, owner)
		}
	}
	b.append(rules.Nat, rules.Output, "every outbound packet that begins a connection is looked at", rules.Jump(istioOutput), gate...)
	b.istioOutbound(p)
	if p.DNSCapture {
		b.istioDNS(p)
	}
	if p.TProxy {
		b.istioTProxyTail(p)
		b.rs.Setup.Routes = []rules.LocalRoute{{Mark: tproxyMark, Table: tproxyTable}}
	}
}

func (b *builder) istioInterfaces(p Istio) {
	tables := []rules.Table{rules.Nat}
	if p.TProxy {
		tables = append(tables, rules.Mangle)
	}
	for _, i := range p.ExcludeInterfaces {
		for _, t := range tables {
			b.append(t, rules.Prerouting, "interface excluded by "+i.Origin, rules.Return{}, rules.InInterface(i.Name))
			b.append(t, rules.Output, "interface excluded by "+i.Origin, rules.Return{}, rules.OutInterface(i.Name))
		}
	}
	for _, i := range p.VirtualInterfaces {
		b.insert(rules.Nat, rules.Prerouting, 1, "what comes from a virtual machine is not inbound: "+i.Origin, rules.Return{}, rules.InInterface(i.Name))
	}
}

func (b *builder) istioInbound(p Istio) {
	if !p.Inbound.All && len(p.Inbound.IncludePorts) == 0 {
		return
	}
	table := rules.Nat
	if p.TProxy {
		table = rules.Mangle
		b.chains(rules.Mangle, istioInbound, istioDivert, istioTProxy)
		b.append(rules.Mangle, istioDivert, "packets of a connection that the proxy serves stay with it", rules.SetMark(tproxyMark))
		b.append(rules.Mangle, istioDivert, "packets of a connection that the proxy serves stay with it", rules.Accept{})
		b.append(rules.Mangle, istioTProxy, "inbound connections go to the proxy's transparent listener", rules.TProxy{Port: p.Proxy.Inbound, Mark: tproxyMark}, notLocalhost, rules.TCP)
	}
	b.append(table, rules.Prerouting, "every inbound TCP connection is looked at", rules.Jump(istioInbound), rules.TCP)
	if p.Inbound.All {
		for _, port := range p.Inbound.ExcludePorts {
			b.append(table, istioInbound, "port excluded by "+port.Origin, rules.Return{}, rules.TCP, rules.DstPort{Port: port.Number})
		}
		b.istioCapture(p, "everything else goes to the proxy", rules.TCP)
	}
	for _, port := range p.Inbound.IncludePorts {
		b.istioCapture(p, "port included by "+port.Origin, rules.TCP, rules.DstPort{Port: port.Number})
	}
}

// istioCapture gives inbound packets to the proxy.
func (b *builder) istioCapture(p Istio, why string, m ...rules.Match) {
	if !p.TProxy {
		b.append(rules.Nat, istioInbound, why, rules.Jump(istioInRedirect), m...)
		return
	}
	b.append(rules.Mangle, istioInbound, why, rules.Jump(istioDivert), append(slices.Clip(m), rules.CTState{rules.Related, rules.Established})...)
	b.append(rules.Mangle, istioInbound, why, rules.Jump(istioTProxy), m...)
}

func (b *builder) istioOutbound(p Istio) {
	out := func(why string, t rules.Target, m ...rules.Match) { b.append(rules.Nat, istioOutput, why, t, m...) }
	for _, port := range p.Outbound.ExcludePorts {
		out("port excluded by "+port.Origin, rules.Return{}, rules.TCP, rules.DstPort{Port: port.Number})
		out("port excluded by "+port.Origin, rules.Return{}, rules.UDP, rules.DstPort{Port: port.Number})
	}
	out("the proxy connects to the application without a listener of its own", rules.Return{}, rules.Source{Prefixes: passthrough}, lo)
	notTunnel := rules.DstPort{Port: p.Proxy.Tunnel, Not: true}
	byUser := rules.Match(notTunnel)
	if p.DNSCapture {
		byUser = rules.DstPorts{Ports: []uint16{dnsPort, p.Proxy.Tunnel}, Not: true}
	}
	b.istioOwner(p, rules.OwnerUID{ID: p.Proxy.UID}, rules.OwnerUID{ID: p.Proxy.UID, Not: true}, byUser)
	b.istioOwner(p, rules.OwnerGID{ID: p.Proxy.GID}, rules.OwnerGID{ID: p.Proxy.GID, Not: true}, notTunnel)
	for _, u := range p.Outbound.ExcludeUsers {
		out(u.Origin+" goes direct", rules.Return{}, rules.OwnerUID{ID: u.UID})
	}
	if p.DNSCapture {
		b.chains(rules.Nat, istioOutputDNS)
		out("DNS queries go to the proxy", rules.Jump(istioOutputDNS))
	}
	out("connections within the pod stay within it", rules.Return{}, rules.Destination{Prefixes: localhost})
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		out("range excluded by "+g.origin, rules.Return{}, rules.Destination{Prefixes: g.prefixes})
	}
	for _, port := range p.Outbound.IncludePorts {
		out("port included by "+port.Origin, rules.Jump(istioRedirect), rules.TCP, rules.DstPort{Port: port.Number})
	}
	b.istioIncluded(p)
}

// istioOwner tells the proxy's own connections from the application's, by user or by group. selfCalls matches the ports of
// the proxy's calls to the pod's own service.
func (b *builder) istioOwner(p Istio, own, others, selfCalls rules.Match) {
	within := []rules.Match{lo, others}
	if p.DNSCapture {
		within = []rules.Match{lo, rules.TCP, rules.DstPort{Port: dnsPort, Not: true}, others}
	}
	b.append(rules.Nat, istioOutput, "the proxy's calls to the pod's own service come back in through its inbound listener", rules.Jump(istioInRedirect),
		notLocalhost, lo, rules.TCP, selfCalls, own)
	if !p.Outbound.loopback() {
		b.append(rules.Nat, istioOutput, "the application's connections within the pod stay within it", rules.Return{}, within...)
	}
	b.append(rules.Nat, istioOutput, "the proxy's own connections leave the pod", rules.Return{}, own)
}

func (b *builder) istioIncluded(p Istio) {
	virtual := func(why string, m ...rules.Match) {
		for _, i := range p.VirtualInterfaces {
			b.insert(rules.Nat, rules.Prerouting, 1, why+", from a virtual machine too", rules.Jump(istioRedirect), append(slices.Clip(m), rules.InInterface(i.Name))...)
		}
	}
	if p.Outbound.All {
		b.append(rules.Nat, istioOutput, "everything else goes to the proxy", rules.Jump(istioRedirect))
		virtual("everything else goes to the proxy")
		return
	}
	for _, r := range p.Outbound.IncludeRanges {
		to := rules.Destination{Prefixes: []netip.Prefix{r.Prefix}}
		virtual("range included by "+r.Origin, to)
		b.append(rules.Nat, istioOutput, "range included by "+r.Origin, rules.Jump(istioRedirect), to)
	}
}

// istioDNS captures queries over UDP and TCP. An application's query and the one that the proxy makes for it may have the
// same addresses and ports: zones keep them apart.
func (b *builder) istioDNS(p Istio) {
	b.chains(rules.Raw, istioOutputDNS, istioInbound)
	for _, protocol := range []rules.Protocol{rules.TCP, rules.UDP} {
		b.append(rules.Nat, istioOutputDNS, "DNS queries go to the proxy's DNS listener", rules.Redirect(p.Proxy.DNS), protocol, rules.DstPort{Port: dnsPort})
	}
	b.append(rules.Raw, rules.Output, "DNS queries are tracked in zones of their own", rules.Jump(istioOutputDNS))
	for _, owner := range p.Proxy.owners() {
		b.append(rules.Raw, istioOutputDNS, "the proxy's own queries", zoneProxy, rules.UDP, rules.DstPort{Port: dnsPort}, owner)
		b.append(rules.Raw, istioOutputDNS, "the proxy's answers to the application", zoneApp, rules.UDP, rules.SrcPort(p.Proxy.DNS), owner)
	}
	b.append(rules.Raw, rules.Prerouting, "answers to the proxy's queries are tracked in its zone", rules.Jump(istioInbound))
	b.append(rules.Raw, istioOutputDNS, "the application's queries", zoneApp, rules.UDP, rules.DstPort{Port: dnsPort})
	b.append(rules.Raw, istioInbound, "answers to the proxy's own queries", zoneProxy, rules.UDP, rules.SrcPort(dnsPort))
}

// istioTProxyTail keeps the marks of connections that the transparent listener serves, for answers as well.
func (b *builder) istioTProxyTail(p Istio) {
	b.chains(rules.Mangle, istioInbound)
	b.append(rules.Mangle, rules.Prerouting, "a connection remembers that the transparent listener serves it", rules.SaveMark{}, rules.TCP, rules.Mark{Value: tproxyMark})
	b.append(rules.Mangle, rules.Output, "the proxy's connections to the application keep their mark", rules.Return{}, lo, rules.TCP, rules.Mark{Value: tproxyMark})
	for _, owner := range p.Proxy.owners() {
		b.append(rules.Mangle, rules.Output, "the proxy's own packets on lo are told from the application's", rules.SetMark(outMark), notLocalhost, lo, rules.TCP, owner)
	}
	b.append(rules.Mangle, rules.Output, "answers of a connection that the transparent listener serves find back to it", rules.RestoreMark{}, rules.TCP, rules.ConnMark(tproxyMark))
	b.insert(rules.Mangle, istioInbound, 1, "it has been through the proxy", rules.Return{}, rules.TCP, rules.Mark{Value: tproxyMark})
	b.insert(rules.Mangle, istioInbound, 2, "the proxy connects to the application without a listener of its own", rules.Return{}, rules.Source{Prefixes: passthrough}, rules.InInterface("lo"), rules.TCP)
	b.insert(rules.Mangle, istioInbound, 3, "connections within the pod stay within it", rules.Return{}, rules.InInterface("lo"), rules.TCP, rules.Mark{Value: outMark, Not: true})
}
