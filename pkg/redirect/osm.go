package redirect

import "net/netip"

// OSM is the policy of Open Service Mesh and its kin: two chains look at the connections, two redirect them.
type OSM struct {
	Chains Chains
	Proxy  Proxy
	// SelfCalls lets the proxy call the pod's own service through its inbound listener, and leaves everything else on lo
	// alone.
	SelfCalls bool
	Outbound  Outbound
	Inbound   Inbound
	// PodIPs has the proxy reach the application by the pod's address instead of localhost.
	PodIPs []netip.Addr
	// LocalDNS sends queries to 127.0.0.153 to the proxy's DNS listener there.
	LocalDNS bool
	// AfterProxyStart leaves what goes out alone until the proxy sends its first packet out of the pod.
	AfterProxyStart bool
}

// Chains are the names under which the mesh's own guides look for the rules.
type Chains struct {
	Inbound          string
	InboundRedirect  string
	Outbound         string
	OutboundRedirect string
}

// Proxy is the sidecar: the user it runs as and the ports it listens on.
type Proxy struct {
	UID      uint32
	Inbound  uint16
	Outbound uint16
	Admin    uint16
}

// Outbound says which of the pod's own connections stay direct.
type Outbound struct {
	ExcludeRanges     []Range
	ExcludePorts      []Port
	ExcludeInterfaces []Interface
	ExcludeUsers      []User
	// IncludeRanges, if there are any, are all that is redirected of what is not excluded.
	IncludeRanges []Range
}

// Inbound says which connections to the pod stay direct.
type Inbound struct {
	// ProxyPorts are served by the proxy itself (metrics, probes) and never redirected.
	ProxyPorts        []uint16
	ExcludePorts      []Port
	ExcludeInterfaces []Interface
}

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
	wrong.listeners(o.Proxy.Inbound, o.Proxy.Outbound, o.Proxy.Admin)
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
