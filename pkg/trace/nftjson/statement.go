package nftjson

import (
	"math"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/trace"
)

// statements reads a rule's statements, and adds the matches that nft does not print.
func (t *ruleset) statements(statements []any, texts []string) []trace.Statement {
	var all []trace.Statement
	var met []need
	for i, x := range statements {
		key, arg := single(x)
		for _, n := range append(needs(x), needsOfTarget(key, arg)...) {
			if !slices.Contains(met, n) && !t.always(n) {
				met = append(met, n)
				all = append(all, n.match())
			}
		}
		all = append(all, t.statement(key, arg, texts[i])...)
	}
	return all
}

// always says whether each packet of the table's family has what is needed.
func (t *ruleset) always(n need) bool {
	return t.Family == trace.IP && n == needIPv4 || t.Family == trace.IP6 && n == needIPv6
}

func (n need) match() trace.Match {
	text := map[need]string{needIPv4: "meta nfproto ipv4", needIPv6: "meta nfproto ipv6"}[n]
	if n.field == trace.L4Proto {
		text = "meta l4proto " + nameOf(protocol, n.value)
	}
	return trace.Match{Left: n.field, Right: trace.NewSet(trace.Just(trace.Value{Num: n.value})), Text: text}
}

// nameOf returns the name that nft would write.
func nameOf(k *kind, value uint64) string {
	var names []string
	for name, v := range k.names {
		if v == value {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[len(names)-1]
}

func needsOfTarget(key string, arg any) []need {
	a, _ := arg.(map[string]any)
	switch key {
	case "tproxy":
		family, _ := a["family"].(string)
		return needsOfIP[family]
	case "reject":
		switch a["type"] {
		case "tcp reset":
			return []need{needTCP}
		case "icmp":
			return []need{needIPv4}
		case "icmpv6":
			return []need{needIPv6}
		}
	}
	return nil
}

// silent are the statements that do not concern the packet's way.
var silent = map[string]bool{
	"counter": true, "log": true, "ct helper": true, "ct timeout": true, "ct expectation": true, "dup": true, "flow": true, "secmark": true,
	"last": true, "reset": true,
}

// unknown are the statements that a walk can't know the outcome of, with the reason.
var unknown = map[string]string{
	"limit": "it depends on the packets before", "quota": "it depends on the packets before",
	"ct count": "it depends on the other connections",
}

func (t *ruleset) statement(key string, arg any, text string) []trace.Statement {
	a, _ := arg.(map[string]any)
	if verdict, ok := verdictOf(map[string]any{key: arg}); ok {
		return []trace.Statement{verdict}
	}
	switch key {
	case "match":
		return []trace.Statement{t.match(a, text)}
	case "vmap":
		keys := kindsOf(a["key"])
		return []trace.Statement{trace.VerdictMap{Key: t.expr(a["key"], keys), Map: t.set(a["data"], keys, nil), Text: text}}
	case "mangle":
		return []trace.Statement{t.mangle(a, text)}
	case "reject":
		return []trace.Statement{trace.Verdict{Kind: trace.Reject, With: rejectWith(a, t.Family)}}
	case "dnat", "snat", "redirect", "masquerade":
		return []trace.Statement{t.nat(key, a)}
	case "tproxy":
		return []trace.Statement{tproxy(a, text)}
	case "notrack":
		return []trace.Statement{trace.NoTrack{}}
	case "set":
		return t.dynamic(a, text)
	case "meter":
		return t.onlyIf(a["stmt"], nil)
	case "queue":
		return []trace.Statement{trace.Verdict{Kind: trace.Queue}}
	case "fwd":
		return []trace.Statement{trace.Verdict{Kind: trace.Stolen, With: text}}
	case "xt":
		return []trace.Statement{xtables(a, text)}
	}
	switch reason := unknown[key]; {
	case silent[key]:
		return []trace.Statement{trace.Silent{Text: text}}
	case reason != "":
		return []trace.Statement{trace.UnknownMatch{Text: text, Reason: reason}}
	}
	return []trace.Statement{trace.UnknownEffect{Text: text, Reason: "detour does not know this statement of nft"}}
}

var verdicts = map[string]trace.VerdictKind{
	"accept": trace.Accept, "drop": trace.Drop, "continue": trace.Continue, "return": trace.Return, "jump": trace.Jump, "goto": trace.Goto,
}

func verdictOf(x any) (v trace.Verdict, ok bool) {
	key, arg := single(x)
	v.Kind, ok = verdicts[key]
	a, _ := arg.(map[string]any)
	v.Chain, _ = a["target"].(string)
	if v.Kind == trace.Jump || v.Kind == trace.Goto {
		ok = v.Chain != ""
	}
	return v, ok
}

func (t *ruleset) match(a map[string]any, text string) trace.Statement {
	kinds := kindsOf(a["left"])
	left := t.expr(a["left"], kinds)
	m := trace.Match{Left: left, Text: text}
	op, _ := a["op"].(string)
	switch op {
	case "in", "!", "":
		return t.bitMatch(m, a["right"], kinds, op)
	case "<", "<=", ">", ">=":
		return compareMatch(m, a["right"], kinds, op)
	}
	m.Not = op == "!="
	m.Right = t.set(a["right"], kinds, nil)
	if !m.Not && op != "==" {
		m.Right = &trace.Set{Unknown: "detour does not know the operator " + op}
	}
	return checked(m)
}

// checked makes a match unknown of whose right side something is not known.
func checked(m trace.Match) trace.Statement {
	if m.Right.Unknown != "" {
		return trace.UnknownMatch{Text: m.Text, Reason: m.Right.Unknown}
	}
	if !statusKnown(m.Left) {
		return trace.UnknownMatch{Text: m.Text, Reason: "a bit of ct status that only the kernel knows decides"}
	}
	return m
}

// knownStatus are the bits of CTStatus that a walk knows.
const knownStatus = trace.StatusSeenReply | trace.StatusConfirmed | trace.StatusSNAT | trace.StatusDNAT

func statusKnown(e trace.Expr) bool {
	if and, ok := e.(trace.And); ok && and.A == trace.Expr(trace.CTStatus) {
		mask, _ := and.B.(trace.Const)
		return len(mask) == 1 && mask[0].Num&^knownStatus == 0
	}
	return e != trace.Expr(trace.CTStatus)
}

// bitMatch holds if one of the bits is set, or with "!" if none is. nft leaves the operator out of what is no bitmask.
func (t *ruleset) bitMatch(m trace.Match, right any, kinds []*kind, op string) trace.Statement {
	bits, ok := at(kinds, 0).value(right)
	if !ok || !kinds[0].bits {
		m.Not = op == "!"
		m.Right = t.set(right, kinds, nil)
		return checked(m)
	}
	m.Left = trace.Mask(m.Left, bits.Num)
	m.Not = op != "!"
	m.Right = trace.NewSet(trace.Just(trace.Value{}))
	return checked(m)
}

func compareMatch(m trace.Match, right any, kinds []*kind, op string) trace.Statement {
	v, ok := at(kinds, 0).value(right)
	if !ok || v.Name != "" {
		return trace.UnknownMatch{Text: m.Text, Reason: "detour does not know the value"}
	}
	lowest, highest := trace.Value{}, trace.Value{Num: math.MaxUint64}
	if v.Addr.IsValid() {
		all := trace.Prefix(netip.PrefixFrom(v.Addr, 0))
		lowest, highest = all.Lo, all.Hi
	}
	// "<" is what ">=" is not: then no value has to be counted up or down.
	m.Not = op == "<" || op == ">"
	r := trace.Range{Lo: v, Hi: highest}
	if op == "<=" || op == ">" {
		r = trace.Range{Lo: lowest, Hi: v}
	}
	m.Right = trace.NewSet(r)
	return m
}

// harmless are the parts of a packet whose change does not concern its way.
var harmless = map[string]bool{
	"ip dscp": true, "ip ecn": true, "ip ttl": true, "ip id": true, "ip checksum": true, "ip6 dscp": true, "ip6 ecn": true, "ip6 hoplimit": true,
	"ip6 flowlabel": true, "tcp window": true, "tcp urgptr": true, "tcp checksum": true, "udp checksum": true,
}

func (t *ruleset) mangle(a map[string]any, text string) trace.Statement {
	key, arg := single(a["key"])
	target, _ := arg.(map[string]any)
	name, _ := target["key"].(string)
	switch key + " " + name {
	case "meta mark":
		return trace.Assign{Field: trace.Mark, Value: t.expr(a["value"], []*kind{mark})}
	case "ct mark":
		return trace.Assign{Field: trace.CTMark, Value: t.expr(a["value"], []*kind{mark})}
	case "ct zone":
		zone, ok := uint16Of(a["value"])
		if !ok || target["dir"] != nil {
			return trace.UnknownEffect{Text: text, Reason: "the zone is not the same for each packet"}
		}
		return trace.SetZone{Zone: zone}
	}
	proto, _ := target["protocol"].(string)
	field, _ := target["field"].(string)
	if key == "payload" && !harmless[proto+" "+field] {
		return trace.UnknownEffect{Text: text, Reason: "it changes the packet"}
	}
	return trace.Silent{Text: text}
}

// rejectWith names the answer as iptables does, such as icmp-port-unreachable and tcp-reset.
func rejectWith(a map[string]any, family trace.Family) string {
	kind, _ := a["type"].(string)
	with, _ := a["expr"].(string)
	switch {
	case kind == "tcp reset":
		return "tcp-reset"
	case kind != "" && with != "":
		return kind + "-" + with
	}
	return usualReject[family] + "-port-unreachable"
}

// dynamic reads add, update and delete. A limit of the element is a match.
func (t *ruleset) dynamic(a map[string]any, text string) []trace.Statement {
	name, _ := a["set"].(string)
	element := bare(a["elem"])
	key, set := t.expr(element, kindsOf(element)), t.set(name, nil, nil)
	switch a["op"] {
	case "add", "update":
		return t.onlyIf(a["stmt"], trace.Add{Key: key, Set: set})
	case "delete":
		return t.onlyIf(a["stmt"], trace.Delete{Key: key, Set: set})
	}
	return []trace.Statement{trace.UnknownEffect{Text: text, Reason: "detour does not know this statement of nft"}}
}

// onlyIf returns the statement, and the matches among those that an element of a set has of its own.
func (t *ruleset) onlyIf(own any, s trace.Statement) []trace.Statement {
	var all []trace.Statement
	if s != nil {
		all = append(all, s)
	}
	list, isList := own.([]any)
	if !isList {
		list = []any{own}
	}
	for _, one := range list {
		key, _ := single(one)
		if reason := unknown[key]; reason != "" {
			all = append(all, trace.UnknownMatch{Text: statementText(one, t.Family), Reason: reason})
		}
	}
	return all
}

func xtables(a map[string]any, text string) trace.Statement {
	const reason = "nft prints only its name: read iptables' tables from iptables-save"
	switch {
	case a["name"] == "comment":
		return trace.Silent{Text: text}
	case a["type"] == "match":
		return trace.UnknownMatch{Text: text, Reason: reason}
	}
	return trace.UnknownEffect{Text: text, Reason: reason}
}
