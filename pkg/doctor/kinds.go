package doctor

import (
	"net/netip"

	"github.com/detour-cni/detour/pkg/rules"
)

// Kind is one kind of thing that rules have, and the name of the feature that it takes. It is the same in every version.
type Kind string

// The kinds.
const (
	TableRaw         Kind = "table-raw"
	TableMangle      Kind = "table-mangle"
	TableNat         Kind = "table-nat"
	MatchSource      Kind = "source"
	MatchDestination Kind = "destination"
	NotDestination   Kind = "destination-not"
	AddressList      Kind = "address-list"
	MatchInterface   Kind = "interface"
	MatchProtocol    Kind = "protocol"
	MatchPort        Kind = "port"
	MatchPortList    Kind = "port-list"
	MatchUser        Kind = "owner-uid"
	MatchGroup       Kind = "owner-gid"
	MatchMark        Kind = "mark"
	MatchConnMark    Kind = "connection-mark"
	MatchState       Kind = "connection-state"
	Gate             Kind = "gate"
	Verdict          Kind = "verdict"
	Redirect         Kind = "redirect"
	Redirected       Kind = "redirected-connection"
	DNAT             Kind = "dnat"
	TProxy           Kind = "tproxy"
	SetMark          Kind = "set-mark"
	SaveMark         Kind = "save-mark"
	RestoreMark      Kind = "restore-mark"
	Zone             Kind = "zone"
	LoopbackAddress  Kind = "loopback-address"
	LocalRoute       Kind = "local-route"
)

// kindsOf lists what a ruleset has, each kind once or more often.
func kindsOf(rs rules.Ruleset) []Kind {
	var all []Kind
	for _, r := range rs.Rules {
		all = append(all, kindOfTable(r.Chain.Table), kindOfTarget(r.Target))
		for _, m := range r.Matches {
			all = append(all, kindsOfMatch(m)...)
		}
	}
	if len(rs.Setup.Loopback) > 0 {
		all = append(all, LoopbackAddress)
	}
	if len(rs.Setup.Routes) > 0 {
		all = append(all, LocalRoute)
	}
	return all
}

func kindOfTable(t rules.Table) Kind { return "table-" + Kind(t) }

func kindsOfMatch(m rules.Match) []Kind {
	switch m := m.(type) {
	case rules.Source:
		return listed(MatchSource, m.Prefixes)
	case rules.Destination:
		if m.Not {
			return listed(NotDestination, m.Prefixes)
		}
		return listed(MatchDestination, m.Prefixes)
	case rules.InInterface, rules.OutInterface:
		return []Kind{MatchInterface}
	case rules.Protocol:
		return []Kind{MatchProtocol}
	case rules.SrcPort, rules.DstPort:
		return []Kind{MatchPort}
	case rules.DstPorts:
		return []Kind{MatchPortList}
	case rules.OwnerUID:
		return []Kind{MatchUser}
	case rules.OwnerGID:
		return []Kind{MatchGroup}
	case rules.Mark:
		return []Kind{MatchMark}
	case rules.ConnMark:
		return []Kind{MatchConnMark}
	case rules.CTState:
		return []Kind{MatchState}
	case rules.GateOpen:
		return []Kind{Gate}
	}
	return nil
}

// listed is a match on addresses, of which a family may have several.
func listed(k Kind, prefixes []netip.Prefix) []Kind {
	for _, f := range rules.Families {
		if len(rules.OfFamily(prefixes, f)) > 1 {
			return []Kind{k, AddressList}
		}
	}
	return []Kind{k}
}

func kindOfTarget(t rules.Target) Kind {
	switch t.(type) {
	case rules.Return, rules.Accept, rules.Drop, rules.Jump:
		return Verdict
	case rules.Redirect:
		return Redirect
	case rules.DNAT:
		return DNAT
	case rules.TProxy:
		return TProxy
	case rules.SetMark:
		return SetMark
	case rules.SaveMark:
		return SaveMark
	case rules.RestoreMark:
		return RestoreMark
	case rules.Zone:
		return Zone
	case rules.OpenGate:
		return Gate
	}
	return ""
}
