package iptext

import (
	"net/netip"

	"github.com/detour-cni/detour/pkg/redirect"
)

var testPolicy = redirect.OSM{
	Chains: redirect.Chains{Inbound: "IN", InboundRedirect: "IN_R", Outbound: "OUT", OutboundRedirect: "OUT_R"},
	Proxy:  redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
	Outbound: redirect.Outbound{
		ExcludePorts:  []redirect.Port{{Number: 80, Origin: "A"}, {Number: 81, Origin: "B"}, {Number: 82, Origin: "A"}},
		ExcludeRanges: []redirect.Range{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Origin: "A"}, {Prefix: netip.MustParsePrefix("fd00::/8"), Origin: "A"}, {Prefix: netip.MustParsePrefix("::/1"), Origin: "B"}},
	},
}

// everything is a policy whose rules use every match and target but DNAT.
var everything = redirect.Istio{
	Proxy:  redirect.Proxy{UID: 1337, GID: 1337, Inbound: 15006, Outbound: 15001, Tunnel: 15008, DNS: 15053},
	TProxy: true, DropInvalid: true, DNSCapture: true,
	Inbound:           redirect.IstioInbound{All: true, ExcludePorts: []redirect.Port{{Number: 15020, Origin: "A"}}},
	Outbound:          redirect.IstioOutbound{All: true, ExcludeRanges: testPolicy.Outbound.ExcludeRanges, ExcludePorts: testPolicy.Outbound.ExcludePorts},
	ExcludeInterfaces: []redirect.Interface{{Name: "net1", Origin: "A"}},
	VirtualInterfaces: []redirect.Interface{{Name: "tap0", Origin: "A"}},
}
