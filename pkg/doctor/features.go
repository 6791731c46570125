package doctor

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// feature is what the kernel must have for one kind of rule: the rules that find it out, and what they need.
type feature struct {
	name Kind
	// use says which pods need it: "MESH, MESH: option; MESH: option", where everyMesh stands for all of them.
	use string
	rs  rules.Ruleset
	nft need
	xt  need // of both variants of iptables
}

// need is what a backend needs of the kernel: how kernels call it, the module to load, and the first release of Linux that has it
// for both families.
type need struct{ what, module, since string }

var (
	core    = need{"CONFIG_NF_TABLES_INET", "nf_tables", "3.14"}
	nftCT   = need{"CONFIG_NFT_CT", "nft_ct", "3.14"}
	basic   = need{"iptables itself", "", "3.7"}
	onLo    = need{"CONFIG_INET, CONFIG_IPV6", "", "2.6"}
	rulesOf = need{"CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES", "", "2.6"}
)

// features are all that any mesh's rules need. The order is that of the table; the first are those without which there is nothing.
var features = []feature{
	{TableNat, everyMeshPod, of(nat(rules.Output, rules.Return{}), nat(rules.Prerouting, rules.Return{})),
		need{"CONFIG_NFT_NAT, CONFIG_NF_TABLES_INET", "nft_chain_nat", "5.2"}, need{"CONFIG_IP_NF_NAT, CONFIG_IP6_NF_NAT", "", "3.7"}},
	{Verdict, everyMeshPod, withChain(nat(rules.Output, rules.Jump(ownChain.Name)), nat(ownChain.Name, rules.Accept{}), mangle(rules.Prerouting, rules.Drop{}, rules.Protocol("udp"), rules.SrcPort(9))),
		core, basic},
	{MatchProtocol, everyMeshPod, of(nat(rules.Output, rules.Return{}, rules.TCP), nat(rules.Output, rules.Return{}, rules.UDP)), core, basic},
	{MatchPort, everyMeshPod, of(nat(rules.Output, rules.Return{}, rules.TCP, port(9, false)), nat(rules.Output, rules.Return{}, rules.UDP, port(9, true)),
		nat(rules.Prerouting, rules.Return{}, rules.UDP, rules.SrcPort(9))), core, need{"CONFIG_NETFILTER_XTABLES", "xt_tcpudp", "2.6.20"}},
	{MatchUser, everyMeshPod, of(nat(rules.Output, rules.Return{}, rules.OwnerUID{ID: 1}), nat(rules.Output, rules.Return{}, rules.OwnerUID{ID: 1, Not: true})),
		core, need{"CONFIG_NETFILTER_XT_MATCH_OWNER", "xt_owner", "2.6.25"}},
	{MatchDestination, everyMeshPod, of(nat(rules.Output, rules.Return{}, to(false, "192.0.2.1/32", "2001:db8::1/128")),
		nat(rules.Output, rules.Return{}, to(false, "198.18.0.0/15", "2001:db8::/29"))), core, basic},
	{Redirect, everyMeshPod, of(nat(rules.Output, rules.Redirect(9), rules.TCP, port(9, false)), nat(rules.Prerouting, rules.Redirect(9), rules.TCP, port(9, false))),
		need{"CONFIG_NFT_REDIR", "nft_redir", "5.2"}, need{"CONFIG_NETFILTER_XT_TARGET_REDIRECT", "xt_REDIRECT", "3.7"}},
	{Redirected, everyMeshPod, rules.Ruleset{}, need{"CONFIG_NF_CONNTRACK", "nf_conntrack", "3.7"}, need{"CONFIG_NF_CONNTRACK", "nf_conntrack", "3.7"}},
	{NotDestination, "osm-v1, osm-edge, fsm, istio: every pod; osm: redirectAfterProxyStart", of(nat(rules.Output, rules.Return{}, to(true, "127.0.0.1/32", "::1/128"))), core, basic},
	{MatchInterface, "osm-v1, osm-edge, fsm, istio: every pod", of(nat(rules.Output, rules.Return{}, rules.OutInterface("lo")), nat(rules.Prerouting, rules.Return{}, rules.InInterface("lo"))),
		core, basic},
	{MatchGroup, "istio: every pod", of(nat(rules.Output, rules.Return{}, rules.OwnerGID{ID: 1}), nat(rules.Output, rules.Return{}, rules.OwnerGID{ID: 1, Not: true})),
		core, need{"CONFIG_NETFILTER_XT_MATCH_OWNER", "xt_owner", "2.6.25"}},
	{MatchSource, "istio: every pod", of(nat(rules.Output, rules.Return{}, from("192.0.2.1/32", "2001:db8::1/128"))), core, basic},
	{MatchPortList, "osm, osm-v1, osm-edge, fsm: excluded ports; istio: DNS capture", of(
		nat(rules.Output, rules.Return{}, rules.TCP, rules.DstPorts{Ports: []uint16{9, 20, 21, 22}}),
		nat(rules.Output, rules.Return{}, rules.TCP, rules.DstPorts{Ports: []uint16{9, 11}, Not: true})),
		core, need{"CONFIG_NETFILTER_XT_MATCH_MULTIPORT", "xt_multiport", "2.6.18"}},
	{AddressList, "every mesh: excluded or included ranges", of(nat(rules.Output, rules.Return{},
		to(false, "192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/25", "2001:db8:1::/48", "2001:db8:3::7/128"))), core, basic},
	{Gate, "every mesh: redirectAfterProxyStart", of(nat(rules.Output, rules.OpenGate{}, rules.OwnerUID{ID: 1}), nat(rules.Output, rules.Return{}, rules.GateOpen{})),
		need{"CONFIG_NF_TABLES_INET, sets that rules add to", "nf_tables", "4.1"}, need{}},
	{DNAT, "osm-v1, osm-edge, fsm: localProxyMode PodIP, local DNS proxy", of(
		nat(rules.Output, rules.DNAT{Addr: netip.MustParseAddr("192.0.2.1")}, rules.OutInterface("lo"), rules.TCP),
		nat(rules.Output, rules.DNAT{Addr: netip.MustParseAddr("2001:db8::1"), Port: 9}, rules.OutInterface("lo"), rules.TCP),
		nat(rules.Output, rules.DNAT{Addr: netip.MustParseAddr("192.0.2.1"), Port: 9}, rules.OutInterface("lo"), rules.UDP)),
		need{"CONFIG_NFT_NAT", "nft_nat", "5.2"}, need{"CONFIG_NETFILTER_XT_NAT", "xt_nat", "3.7"}},
	{TableMangle, "every mesh: redirectAfterProxyStart; istio: TPROXY, ISTIO_META_INVALID_DROP", of(mangle(rules.Output, rules.Return{}), mangle(rules.Prerouting, rules.Return{})),
		need{"CONFIG_NF_TABLES_INET, chains of type route", "nf_tables", "5.2"}, need{"CONFIG_IP_NF_MANGLE, CONFIG_IP6_NF_MANGLE", "", "2.6"}},
	{MatchState, "istio: TPROXY, ISTIO_META_INVALID_DROP", of(mangle(rules.Prerouting, rules.Return{}, rules.TCP, rules.CTState{rules.Invalid}),
		mangle(rules.Prerouting, rules.Return{}, rules.TCP, rules.CTState{rules.Related, rules.Established})), nftCT, need{"CONFIG_NETFILTER_XT_MATCH_CONNTRACK", "xt_conntrack", "2.6.24"}},
	{TProxy, "istio: TPROXY", of(mangle(rules.Prerouting, rules.TProxy{Port: 9, Mark: 1337}, rules.TCP, port(9, false))),
		need{"CONFIG_NFT_TPROXY", "nft_tproxy", "4.19"}, need{"CONFIG_NETFILTER_XT_TARGET_TPROXY", "xt_TPROXY", "2.6.37"}},
	{MatchMark, "istio: TPROXY", of(mangle(rules.Prerouting, rules.Return{}, rules.TCP, rules.Mark{Value: 1337}), mangle(rules.Output, rules.Return{}, rules.TCP, rules.Mark{Value: 1338, Not: true})),
		core, need{"CONFIG_NETFILTER_XT_MARK", "xt_mark", "2.6.35"}},
	{SetMark, "istio: TPROXY", of(mangle(rules.Prerouting, rules.SetMark(1337), rules.TCP, port(9, false))), core, need{"CONFIG_NETFILTER_XT_MARK", "xt_mark", "2.6.35"}},
	{MatchConnMark, "istio: TPROXY", of(mangle(rules.Output, rules.Return{}, rules.TCP, rules.ConnMark(1337))),
		need{"CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_MARK", "nft_ct", "3.14"}, need{"CONFIG_NETFILTER_XT_CONNMARK, CONFIG_NF_CONNTRACK_MARK", "xt_connmark", "2.6.35"}},
	{SaveMark, "istio: TPROXY", of(mangle(rules.Prerouting, rules.SaveMark{}, rules.TCP, rules.Mark{Value: 1337})),
		need{"CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_MARK", "nft_ct", "3.14"}, need{"CONFIG_NETFILTER_XT_CONNMARK, CONFIG_NF_CONNTRACK_MARK", "xt_connmark", "2.6.35"}},
	{RestoreMark, "istio: TPROXY", of(mangle(rules.Output, rules.RestoreMark{}, rules.TCP, rules.ConnMark(1337))),
		need{"CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_MARK", "nft_ct", "3.14"}, need{"CONFIG_NETFILTER_XT_CONNMARK, CONFIG_NF_CONNTRACK_MARK", "xt_connmark", "2.6.35"}},
	{LoopbackAddress, "istio: every pod", rules.Ruleset{Setup: rules.Setup{Loopback: []netip.Prefix{netip.MustParsePrefix("192.0.2.6/32"), netip.MustParsePrefix("2001:db8::6/128")}}},
		onLo, onLo},
	{LocalRoute, "istio: TPROXY", rules.Ruleset{Setup: rules.Setup{Routes: []rules.LocalRoute{{Mark: 1337, Table: 133}}}}, rulesOf, rulesOf},
	{TableRaw, "istio: DNS capture", of(raw(rules.Output, rules.Return{}), raw(rules.Prerouting, rules.Return{})),
		core, need{"CONFIG_IP_NF_RAW, CONFIG_IP6_NF_RAW", "", "2.6"}},
	{Zone, "istio: DNS capture", of(raw(rules.Output, rules.Zone(1), rules.UDP, port(53, false)), raw(rules.Prerouting, rules.Zone(1), rules.UDP, rules.SrcPort(53))),
		need{"CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_ZONES", "nft_ct", "4.11"}, need{"CONFIG_NETFILTER_XT_TARGET_CT, CONFIG_NF_CONNTRACK_ZONES", "xt_CT", "2.6.34"}},
}

const (
	everyMesh    = "every mesh"
	everyPod     = "every pod" // an option that every pod has
	everyMeshPod = everyMesh + ": " + everyPod
)

// neededBy reports whether pods of the mesh may need it, and whether every one does.
func (f feature) neededBy(mesh string) (some, all bool) {
	for use := range strings.SplitSeq(f.use, "; ") {
		meshes, option, _ := strings.Cut(use, ": ")
		if meshes == everyMesh || slices.Contains(strings.Split(meshes, ", "), mesh) {
			some, all = true, all || option == everyPod
		}
	}
	return some, all
}

// ownChain is a chain that the rules of a feature jump to.
var ownChain = rules.Chain{Table: rules.Nat, Name: "DETOUR_DOCTOR"}

func of(list ...rules.Rule) rules.Ruleset { return rules.Ruleset{Rules: list} }

func withChain(list ...rules.Rule) rules.Ruleset {
	return rules.Ruleset{Chains: []rules.Chain{ownChain}, Rules: list}
}

func nat(chain string, t rules.Target, m ...rules.Match) rules.Rule {
	return in(rules.Nat, chain, t, m)
}

func mangle(chain string, t rules.Target, m ...rules.Match) rules.Rule {
	return in(rules.Mangle, chain, t, m)
}

func raw(chain string, t rules.Target, m ...rules.Match) rules.Rule {
	return in(rules.Raw, chain, t, m)
}

func in(t rules.Table, chain string, target rules.Target, m []rules.Match) rules.Rule {
	return rules.Rule{Chain: rules.Chain{Table: t, Name: chain}, Matches: m, Target: target, Why: "to find out whether the kernel takes it"}
}

func port(number uint16, not bool) rules.Match { return rules.DstPort{Port: number, Not: not} }

func from(prefixes ...string) rules.Match { return rules.Source{Prefixes: parsed(prefixes)} }

func to(not bool, prefixes ...string) rules.Match {
	return rules.Destination{Prefixes: parsed(prefixes), Not: not}
}

func parsed(prefixes []string) (out []netip.Prefix) {
	for _, p := range prefixes {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// joined is all of the rulesets in one.
func joined(list []feature) (all rules.Ruleset) {
	for _, f := range list {
		for _, c := range f.rs.Chains {
			if !slices.Contains(all.Chains, c) {
				all.Chains = append(all.Chains, c)
			}
		}
		all.Rules = append(all.Rules, f.rs.Rules...)
		all.Setup = all.Setup.Join(f.rs.Setup)
	}
	return all
}
