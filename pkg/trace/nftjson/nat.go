package nftjson

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

func tproxy(a map[string]any, text string) trace.Statement {
	var to trace.TProxy
	var ok bool
	if a["port"] != nil {
		if to.Port, ok = uint16Of(a["port"]); !ok {
			return trace.UnknownEffect{Text: text, Reason: "detour knows a constant port only"}
		}
	}
	if addr, isText := a["addr"].(string); isText {
		parsed, err := netip.ParseAddr(addr)
		if err != nil {
			return trace.UnknownEffect{Text: text, Reason: "detour does not know the address " + addr}
		}
		to.Addr = parsed
	} else if a["addr"] != nil {
		return trace.UnknownEffect{Text: text, Reason: "detour knows a constant address only"}
	}
	return to
}

var natKinds = map[string]trace.NATKind{
	"dnat": trace.DNAT, "snat": trace.SNAT, "redirect": trace.Redirect, "masquerade": trace.Masquerade,
}

func (t *ruleset) nat(key string, a map[string]any) trace.Statement {
	only, _ := a["family"].(string)
	n := trace.NAT{Kind: natKinds[key], Only: trace.Family(only)}
	if n.Kind == trace.Masquerade {
		return n
	}
	if kind, arg := single(a["addr"]); kind == "prefix" {
		if to, ok := prefix(arg); ok {
			n.Net = to.Masked()
			return n
		}
	}
	var to trace.Concat
	if a["addr"] != nil {
		to = append(to, t.natAddr(a["addr"], slices.Contains(strs(a["type_flags"]), "prefix")))
	}
	if a["port"] != nil {
		port := a["port"]
		if lo, hi, ok := portRange(port); ok {
			port, n.MaxPort = lo, hi
		}
		to = append(to, t.expr(port, []*kind{number}))
	}
	switch len(to) {
	case 0:
	case 1:
		n.To = to[0]
	default:
		n.To = to
	}
	return n
}

// natAddr reads an address, a range of them, or a map to addresses or to addresses with ports.
func (t *ruleset) natAddr(x any, isPrefix bool) trace.Expr {
	switch key, arg := single(x); {
	case isPrefix:
		return trace.UnknownExpr{Text: exprText(x, []*kind{address})}
	case key == "range":
		return oneOf(arg)
	}
	return t.expr(x, []*kind{address, number})
}

// maxAddresses is how many addresses of a range a walk follows.
const maxAddresses = 16

// oneOf is one of the addresses of a range: the kernel takes one by a hash.
func oneOf(arg any) trace.Expr {
	var ends []netip.Addr
	texts := strs(arg)
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			ends = append(ends, a)
		}
	}
	unknown := trace.UnknownExpr{Text: strings.Join(texts, "-")}
	if len(ends) != 2 || ends[1].Less(ends[0]) {
		return unknown
	}
	choices := &trace.Set{}
	for a := ends[0]; a.IsValid() && !ends[1].Less(a); a = a.Next() {
		if len(choices.Elements) == maxAddresses {
			return unknown
		}
		n := trace.Just(trace.Number(len(choices.Elements)))
		choices.Elements = append(choices.Elements, trace.Element{Key: []trace.Range{n}, Data: []trace.Value{trace.Addr(a)}})
	}
	return trace.Lookup{Key: trace.Numgen{Mod: uint32(len(choices.Elements))}, Map: choices}
}

func portRange(x any) (lo any, hi uint16, ok bool) {
	key, arg := single(x)
	ends, _ := arg.([]any)
	if key != "range" || len(ends) != 2 {
		return nil, 0, false
	}
	hi, ok = uint16Of(ends[1])
	return ends[0], hi, ok
}
