// Package redirect describes, in typed values only, which of a pod's traffic goes through its proxy.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Policy is what one pod's mesh wants of the pod's network namespace. It is independent of the address family: ranges
// of both families may stand in one list.
type Policy struct {
	Chains   Chains
	Proxy    Proxy
	Outbound Outbound
	Inbound  Inbound
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
	ExcludeRanges []Range
	ExcludePorts  []Port
}

// Inbound says which connections to the pod stay direct.
type Inbound struct {
	// ProxyPorts are served by the proxy itself (metrics, probes) and never redirected.
	ProxyPorts   []uint16
	ExcludePorts []Port
}

// Range is a range of addresses, and where it was asked for.
type Range struct {
	Prefix netip.Prefix
	Origin string
}

// Port is a TCP port, and where it was asked for.
type Port struct {
	Number uint16
	Origin string
}

// maxChain is the longest chain name that iptables takes (XT_EXTENSION_MAXNAMELEN less the final NUL).
const maxChain = 28

// Validate reports every value that no kernel could program or that would loop traffic, in one error.
func (p Policy) Validate() error {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	seen := map[string]bool{}
	for _, name := range []string{p.Chains.Inbound, p.Chains.InboundRedirect, p.Chains.Outbound, p.Chains.OutboundRedirect} {
		switch {
		case name == "" || len(name) > maxChain || strings.Trim(name, chainChars) != "":
			bad("chain %q: a name is 1 to %d of A-Z, a-z, 0-9, _ and -", name, maxChain)
		case seen[name]:
			bad("chain %q stands for two chains", name)
		}
		seen[name] = true
	}
	if p.Proxy.UID == 0 {
		bad("proxy UID 0: root's own connections would all bypass the proxy")
	}
	if p.Proxy.Inbound == 0 || p.Proxy.Outbound == 0 || p.Proxy.Inbound == p.Proxy.Outbound {
		bad("proxy ports %d (inbound) and %d (outbound): two different ports of 1 to 65535 are needed", p.Proxy.Inbound, p.Proxy.Outbound)
	}
	for _, port := range append(append([]Port{}, p.Outbound.ExcludePorts...), p.Inbound.ExcludePorts...) {
		if port.Number == 0 {
			bad("%s: port 0: a port is 1 to 65535", port.Origin)
		}
	}
	for _, r := range p.Outbound.ExcludeRanges {
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() {
			bad("%s: range %s is not a plain IPv4 or IPv6 network", r.Origin, r.Prefix)
		}
	}
	if wrong != nil {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}

const chainChars = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
