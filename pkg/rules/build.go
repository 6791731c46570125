package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

var (
	loopback4 = netip.MustParsePrefix("127.0.0.1/32")
	loopback6 = netip.MustParsePrefix("::1/128")
)

// Build turns a valid policy into the rules of the OSM family, in the order in which they end up when the mesh's own
// init container runs its commands: that one inserts each exclusion at the head of its chain, so the last comes first.
func Build(p redirect.Policy) Ruleset {
	nat := func(name string) Chain { return Chain{Nat, name} }
	inbound, inRedirect := nat(p.Chains.Inbound), nat(p.Chains.InboundRedirect)
	outbound, outRedirect := nat(p.Chains.Outbound), nat(p.Chains.OutboundRedirect)

	rs := Ruleset{Chains: []Chain{inbound, inRedirect, outbound, outRedirect}}
	add := func(c Chain, why string, t Target, m ...Match) {
		rs.Rules = append(rs.Rules, Rule{Chain: c, Matches: m, Target: t, Why: why})
	}

	add(outRedirect, "outbound connections go to the proxy's outbound listener", Redirect(p.Proxy.Outbound), TCP)
	add(outRedirect, "never reached, kept as the mesh has it", Accept{}, TCP, DstPort(p.Proxy.Admin))
	add(nat(Output), "every outbound TCP connection is looked at", Jump(outbound.Name), TCP)
	if ports := p.Outbound.ExcludePorts; len(ports) > 0 {
		add(outbound, "ports excluded by "+origins(ports), Return{}, TCP, dstPorts(ports))
	}
	for _, group := range byOrigin(p.Outbound.ExcludeRanges) {
		add(outbound, "range excluded by "+group.origin, Return{}, group.prefixes)
	}
	add(outbound, "the proxy's own connections leave the pod", Return{}, OwnerUID(p.Proxy.UID))
	add(outbound, "connections within the pod stay within it", Return{}, Destination{loopback4, loopback6})
	add(outbound, "everything else goes to the proxy", Jump(outRedirect.Name))

	add(inRedirect, "inbound connections go to the proxy's inbound listener", Redirect(p.Proxy.Inbound), TCP)
	add(nat(Prerouting), "every inbound TCP connection is looked at", Jump(inbound.Name), TCP)
	if ports := p.Inbound.ExcludePorts; len(ports) > 0 {
		add(inbound, "ports excluded by "+origins(ports), Return{}, TCP, dstPorts(ports))
	}
	for _, port := range p.Inbound.ProxyPorts {
		add(inbound, "the proxy serves this port itself", Return{}, TCP, DstPort(port))
	}
	add(inbound, "everything else goes to the proxy", Jump(inRedirect.Name), TCP)
	return rs
}

func dstPorts(ports []redirect.Port) DstPorts {
	var out DstPorts
	for _, p := range ports {
		out = append(out, p.Number)
	}
	return out
}

// origins says which ports were asked for where: "A (80, 81), B (90)".
func origins(ports []redirect.Port) string {
	var order []string
	numbers := map[string][]string{}
	for _, p := range ports {
		if numbers[p.Origin] == nil {
			order = append(order, p.Origin)
		}
		numbers[p.Origin] = append(numbers[p.Origin], fmt.Sprint(p.Number))
	}
	for i, o := range order {
		order[i] = fmt.Sprintf("%s (%s)", o, strings.Join(numbers[o], ", "))
	}
	return strings.Join(order, ", ")
}

type rangeGroup struct {
	origin   string
	prefixes Destination
}

// byOrigin groups neighbouring ranges of one origin, last range first.
func byOrigin(ranges []redirect.Range) []rangeGroup {
	var groups []rangeGroup
	for _, r := range slices.Backward(ranges) {
		if n := len(groups); n == 0 || groups[n-1].origin != r.Origin {
			groups = append(groups, rangeGroup{origin: r.Origin})
		}
		g := &groups[len(groups)-1]
		g.prefixes = append(g.prefixes, r.Prefix)
	}
	return groups
}
