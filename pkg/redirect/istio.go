package redirect

import (
	"net/netip"
	"slices"
)

// Istio is the policy of istio in sidecar mode.
type Istio struct {
	Proxy IstioProxy
	// TProxy keeps the source address of inbound connections: they are not redirected but handed to a transparent
	// listener.
	TProxy   bool
	Outbound IstioOutbound
	Inbound  IstioInbound
	// ExcludeInterfaces are left alone in both directions.
	ExcludeInterfaces []Interface
	// VirtualInterfaces lead to a virtual machine in the pod: what comes in there is outbound.
	VirtualInterfaces []Interface
	// DropInvalid drops inbound packets that connection tracking can't assign.
	DropInvalid bool
	// DNSCapture sends DNS queries to the proxy.
	DNSCapture bool
	// AfterProxyStart leaves what goes out alone until the proxy sends its first packet out of the pod.
	AfterProxyStart bool
}

// IstioProxy is the sidecar: the users and groups it runs as and the ports it listens on.
type IstioProxy struct {
	UIDs, GIDs []uint32
	Inbound    uint16
	Outbound   uint16
	Tunnel     uint16 // HBONE
	DNS        uint16
}

// IstioOutbound says which of the pod's own connections are redirected.
type IstioOutbound struct {
	// All redirects whatever is not excluded; else only IncludeRanges are.
	All           bool
	IncludeRanges []Range
	ExcludeRanges []Range
	// IncludePorts are redirected whatever the address.
	IncludePorts []Port
	ExcludePorts []Port
	ExcludeUsers []User
}

// IstioInbound says which connections to the pod are redirected.
type IstioInbound struct {
	// All redirects all ports but ExcludePorts; else only IncludePorts are, and ExcludePorts means nothing.
	All          bool
	IncludePorts []Port
	ExcludePorts []Port
}

// Loopback reports whether an included range holds loopback addresses, so that lo can't be left alone.
func (o IstioOutbound) Loopback() bool {
	return slices.ContainsFunc(o.IncludeRanges, func(r Range) bool { return r.Prefix.Addr().IsLoopback() })
}

// Validate implements Policy.
func (i Istio) Validate() error {
	var wrong problems
	if len(i.Proxy.UIDs)+len(i.Proxy.GIDs) == 0 {
		wrong.add("the proxy has neither a UID nor a GID: its own connections would be redirected to itself")
	}
	if slices.Contains(i.Proxy.UIDs, 0) || slices.Contains(i.Proxy.GIDs, 0) {
		wrong.add("proxy UID or GID 0: root's own connections would all bypass the proxy")
	}
	wrong.listeners(i.Proxy.Inbound, i.Proxy.Outbound, i.Proxy.Tunnel, i.Proxy.DNS)
	wrong.ports(i.Outbound.IncludePorts, i.Outbound.ExcludePorts, i.Inbound.IncludePorts, i.Inbound.ExcludePorts)
	wrong.ranges(i.Outbound.IncludeRanges, i.Outbound.ExcludeRanges)
	wrong.interfaces(i.ExcludeInterfaces, i.VirtualInterfaces)
	return wrong.err()
}

// Passthrough are the addresses from which the proxy connects to the application without a listener of its own for it.
var Passthrough = []netip.Prefix{netip.MustParsePrefix("127.0.0.6/32"), netip.MustParsePrefix("::6/128")}

// Localhost are the addresses that stay within the pod.
var Localhost = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
