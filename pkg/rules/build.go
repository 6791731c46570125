package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

// Build turns a valid policy into rules, in the order in which they end up when the mesh's own init container runs its
// commands.
func Build(p redirect.Policy) Ruleset {
	b := &builder{}
	switch p := p.(type) {
	case redirect.OSM:
		b.osm(p)
	case redirect.Istio:
		b.istio(p)
	default:
		panic(fmt.Sprintf("rules: policy %T has no rules", p))
	}
	return b.rs
}

// builder takes a mesh's commands as the mesh's own code lists them: append is iptables -A, insert is iptables -I.
type builder struct{ rs Ruleset }

func (b *builder) chains(t Table, names ...string) {
	for _, name := range names {
		if c := (Chain{t, name}); !slices.Contains(b.rs.Chains, c) {
			b.rs.Chains = append(b.rs.Chains, c)
		}
	}
}

func (b *builder) append(t Table, chain, why string, target Target, m ...Match) {
	b.rs.Rules = append(b.rs.Rules, Rule{Chain{t, chain}, m, target, why})
}

// insert puts the rule at a position within its chain, counted from 1.
func (b *builder) insert(t Table, chain string, position int, why string, target Target, m ...Match) {
	rule := Rule{Chain{t, chain}, m, target, why}
	for i, r := range b.rs.Rules {
		if r.Chain != rule.Chain {
			continue
		}
		if position--; position == 0 {
			b.rs.Rules = slices.Insert(b.rs.Rules, i, rule)
			return
		}
	}
	b.rs.Rules = append(b.rs.Rules, rule)
}

// gate has the redirection of what goes out wait for the first packet that one of the proxy's owners sends out of the pod,
// if it is wanted, and returns the condition for rules to wait. That packet is armed for itself, too: mangle comes ahead
// of nat. Packets within the pod don't count: istio-validation, which runs as the proxy's user ahead of it, sends such.
func (b *builder) gate(wanted bool, owners ...Match) []Match {
	if !wanted {
		return nil
	}
	for _, owner := range owners {
		b.append(Mangle, Output, "the proxy's first packet starts the redirection of what goes out", Arm{}, leavesPod, owner)
	}
	return []Match{Armed{}}
}

// leavesPod is neither 127.0.0.1 and its like nor ::1 and ::6.
var leavesPod = Destination{Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::/125")}, Not: true}

func (b *builder) osm(p redirect.OSM) {
	c := p.Chains
	gate := b.gate(p.AfterProxyStart, OwnerUID{ID: p.Proxy.UID})
	b.chains(Nat, c.Inbound, c.InboundRedirect, c.Outbound, c.OutboundRedirect)

	b.append(Nat, c.OutboundRedirect, "outbound connections go to the proxy's outbound listener", Redirect(p.Proxy.Outbound), TCP)
	b.append(Nat, c.OutboundRedirect, "never reached, kept as the mesh has it", Accept{}, TCP, DstPort{Port: p.Proxy.Admin})
	b.append(Nat, Output, "every outbound TCP connection is looked at", Jump(c.Outbound), append([]Match{TCP}, gate...)...)
	if p.SelfCalls {
		b.append(Nat, c.Outbound, "the proxy's calls to the pod's own service come back in through its inbound listener", Jump(c.InboundRedirect),
			Destination{Prefixes: redirect.Localhost, Not: true}, OutInterface("lo"), OwnerUID{ID: p.Proxy.UID})
		b.append(Nat, c.Outbound, "the application's connections within the pod stay within it", Return{},
			OutInterface("lo"), OwnerUID{ID: p.Proxy.UID, Not: true})
	}
	b.append(Nat, c.Outbound, "the proxy's own connections leave the pod", Return{}, OwnerUID{ID: p.Proxy.UID})
	b.append(Nat, c.Outbound, "connections within the pod stay within it", Return{}, Destination{Prefixes: redirect.Localhost})
	if p.SelfCalls {
		b.osmOutboundAppended(p)
	} else {
		b.osmOutboundInserted(p)
	}
	b.osmInbound(p)
	for i, ip := range p.PodIPs {
		b.insert(Nat, Output, 1+i, "the proxy reaches the application by the pod's address", DNAT{Addr: ip},
			Destination{Prefixes: []netip.Prefix{localhostOf(ip)}}, OutInterface("lo"), TCP, OwnerUID{ID: p.Proxy.UID})
	}
	if p.LocalDNS {
		query := []Match{Destination{Prefixes: []netip.Prefix{netip.PrefixFrom(localDNS, 32)}}, UDP, DstPort{Port: 53}}
		b.append(Nat, Output, "DNS queries go to the proxy's DNS listener", DNAT{localDNS, 5300}, append(query, gate...)...)
	}
}

var localDNS = netip.MustParseAddr("127.0.0.153")

func localhostOf(ip netip.Addr) netip.Prefix {
	i := slices.IndexFunc(redirect.Localhost, func(p netip.Prefix) bool { return Of(p.Addr()) == Of(ip) })
	return redirect.Localhost[i]
}

// osmOutboundInserted is how the published guide's init container excludes: each at the head of the chain, so that the
// last comes first.
func (b *builder) osmOutboundInserted(p redirect.OSM) {
	b.append(Nat, p.Chains.Outbound, "everything else goes to the proxy", Jump(p.Chains.OutboundRedirect))
	for _, u := range p.Outbound.ExcludeUsers {
		b.insert(Nat, p.Chains.Outbound, 1, u.Origin+" goes direct", Return{}, OwnerUID{ID: u.UID})
	}
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		slices.Reverse(g.prefixes)
		b.insert(Nat, p.Chains.Outbound, 1, "range excluded by "+g.origin, Return{}, Destination{Prefixes: g.prefixes})
	}
	if ports := p.Outbound.ExcludePorts; len(ports) > 0 {
		b.insert(Nat, p.Chains.Outbound, 1, "ports excluded by "+origins(ports), Return{}, TCP, DstPorts{Ports: numbers(ports)})
	}
}

// osmOutboundAppended is how the later versions do it: after the rules for the proxy's user and localhost.
func (b *builder) osmOutboundAppended(p redirect.OSM) {
	out, redirected := p.Chains.Outbound, Jump(p.Chains.OutboundRedirect)
	for _, i := range p.Outbound.ExcludeInterfaces {
		b.append(Nat, out, "interface excluded by "+i.Origin, Return{}, OutInterface(i.Name))
	}
	for _, g := range byOrigin(p.Outbound.ExcludeRanges) {
		b.append(Nat, out, "range excluded by "+g.origin, Return{}, Destination{Prefixes: g.prefixes})
	}
	if ports := p.Outbound.ExcludePorts; len(ports) > 0 {
		b.append(Nat, out, "ports excluded by "+origins(ports), Return{}, TCP, DstPorts{Ports: numbers(ports)})
	}
	for _, u := range p.Outbound.ExcludeUsers {
		b.append(Nat, out, u.Origin+" goes direct", Return{}, OwnerUID{ID: u.UID})
	}
	if len(p.Outbound.IncludeRanges) == 0 {
		b.append(Nat, out, "everything else goes to the proxy", redirected)
		return
	}
	for _, g := range byOrigin(p.Outbound.IncludeRanges) {
		b.append(Nat, out, "range included by "+g.origin, redirected, Destination{Prefixes: g.prefixes})
	}
	b.append(Nat, out, "nothing but the included ranges goes to the proxy", Return{})
}

func (b *builder) osmInbound(p redirect.OSM) {
	in := p.Chains.Inbound
	b.append(Nat, p.Chains.InboundRedirect, "inbound connections go to the proxy's inbound listener", Redirect(p.Proxy.Inbound), TCP)
	b.append(Nat, Prerouting, "every inbound TCP connection is looked at", Jump(in), TCP)
	for _, port := range p.Inbound.ProxyPorts {
		b.append(Nat, in, "the proxy serves this port itself", Return{}, TCP, DstPort{Port: port})
	}
	b.append(Nat, in, "everything else goes to the proxy", Jump(p.Chains.InboundRedirect), TCP)
	for _, i := range p.Inbound.ExcludeInterfaces {
		b.insert(Nat, in, 1, "interface excluded by "+i.Origin, Return{}, InInterface(i.Name))
	}
	if ports := p.Inbound.ExcludePorts; len(ports) > 0 {
		b.insert(Nat, in, 1, "ports excluded by "+origins(ports), Return{}, TCP, DstPorts{Ports: numbers(ports)})
	}
}

func numbers(ports []redirect.Port) []uint16 {
	out := make([]uint16, len(ports))
	for i, p := range ports {
		out[i] = p.Number
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
	prefixes []netip.Prefix
}

// byOrigin groups neighbouring ranges of one origin, so that a backend with sets needs few.
func byOrigin(ranges []redirect.Range) []rangeGroup {
	var groups []rangeGroup
	for _, r := range ranges {
		if n := len(groups); n == 0 || groups[n-1].origin != r.Origin {
			groups = append(groups, rangeGroup{origin: r.Origin})
		}
		g := &groups[len(groups)-1]
		g.prefixes = append(g.prefixes, r.Prefix)
	}
	return groups
}
