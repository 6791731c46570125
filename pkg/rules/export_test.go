package rules

import (
	"net/netip"

	"github.com/detour-cni/detour/pkg/redirect"
)

var testPolicy = redirect.Policy{
	Chains: redirect.Chains{Inbound: "IN", InboundRedirect: "IN_R", Outbound: "OUT", OutboundRedirect: "OUT_R"},
	Proxy:  redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
	Outbound: redirect.Outbound{
		ExcludePorts:  []redirect.Port{{Number: 80, Origin: "A"}, {Number: 81, Origin: "B"}, {Number: 82, Origin: "A"}},
		ExcludeRanges: []redirect.Range{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Origin: "A"}, {Prefix: netip.MustParsePrefix("fd00::/8"), Origin: "A"}, {Prefix: netip.MustParsePrefix("::/0"), Origin: "B"}},
	},
}
