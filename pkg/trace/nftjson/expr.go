package nftjson

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// kindsOf returns the kinds of the values of an expression: one for each part of a concatenation. Those of a constant are not
// known.
func kindsOf(x any) []*kind {
	key, arg := single(x)
	switch key {
	case "concat":
		parts, _ := arg.([]any)
		var all []*kind
		for _, part := range parts {
			all = append(all, kindsOf(part)...)
		}
		return all
	case "&", "|", "^", "<<", ">>":
		if operands, _ := arg.([]any); len(operands) > 0 {
			return kindsOf(operands[0])
		}
	}
	return []*kind{propertyOf(key, arg).kind}
}

func at(kinds []*kind, i int) *kind {
	if i < len(kinds) {
		return kinds[i]
	}
	return other
}

// expr reads an expression; kinds are those of its result, for constants. What it does not know is an UnknownExpr.
func (t *ruleset) expr(x any, kinds []*kind) trace.Expr {
	if v, ok := at(kinds, 0).value(x); ok {
		return trace.Const{v}
	}
	key, arg := single(x)
	a, _ := arg.(map[string]any)
	switch key {
	case "concat":
		parts, _ := arg.([]any)
		var all trace.Concat
		for i, part := range parts {
			all = append(all, t.expr(part, []*kind{at(kinds, i)}))
		}
		return all
	case "&", "|", "^", "<<", ">>":
		return t.calculation(key, arg, kinds)
	case "map":
		return trace.Lookup{Key: t.expr(a["key"], kindsOf(a["key"])), Map: t.set(a["data"], kindsOf(a["key"]), kinds)}
	case "numgen", "jhash", "symhash":
		mod, offset := uint32Of(a["mod"]), uint32Of(a["offset"])
		if mod > 0 {
			return trace.Numgen{Mod: mod, Offset: offset}
		}
	}
	if field := propertyOf(key, arg).field; field != 0 {
		return field
	}
	return trace.UnknownExpr{Text: exprText(x, kinds)}
}

// calculation reads a calculation. nft 1.1 writes more than two operands where the operators are the same.
func (t *ruleset) calculation(operator string, arg any, kinds []*kind) trace.Expr {
	operands, _ := arg.([]any)
	if len(operands) < 2 {
		return trace.UnknownExpr{Text: operator}
	}
	result := t.expr(operands[0], kinds)
	for _, operand := range operands[1:] {
		by, _ := operand.(json.Number)
		shift, err := strconv.ParseUint(string(by), 10, 6)
		switch {
		case operator == "&":
			result = trace.And{A: result, B: t.expr(operand, kinds)}
		case operator == "|":
			result = trace.Or{A: result, B: t.expr(operand, kinds)}
		case operator == "^":
			result = trace.Xor{A: result, B: t.expr(operand, kinds)}
		case err != nil:
			return trace.UnknownExpr{Text: exprText(map[string]any{operator: arg}, kinds)}
		case operator == "<<":
			result = trace.Shift{A: result, By: int(shift)}
		default:
			result = trace.Shift{A: result, By: -int(shift)}
		}
	}
	return result
}

func uint32Of(x any) uint32 {
	n, _ := x.(json.Number)
	v, err := strconv.ParseUint(string(n), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(v)
}

func uint16Of(x any) (uint16, bool) {
	n, _ := x.(json.Number)
	v, err := strconv.ParseUint(string(n), 10, 16)
	return uint16(v), err == nil
}

// set reads an anonymous set, a list of elements, or finds one of the table: "@name". data are the kinds of a map's data; none:
// the map's data are verdicts, or it is a set.
func (t *ruleset) set(x any, keys, data []*kind) *trace.Set {
	if name, ok := x.(string); ok && strings.HasPrefix(name, "@") {
		return t.namedSet(name[1:])
	}
	if key, arg := single(x); key == "set" {
		x = arg
	}
	elements, ok := x.([]any)
	if !ok {
		elements = []any{x}
	}
	return readSet("", elements, keys, data)
}

func (t *ruleset) namedSet(name string) *trace.Set {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sets[name]; s != nil {
		return s
	}
	s := &trace.Set{Name: name, Unknown: "the file does not have set " + name}
	if raw := t.named[name]; raw != nil {
		elements, _ := decode(raw.Elem).([]any)
		s = readSet(name, elements, kindsOfType(decode(raw.Type)), kindsOfType(decode(raw.Map)))
	}
	t.sets[name] = s
	return s
}

// kindsOfType returns the kinds of a set's type: a name, "a . b", a list of names, or the expressions of "typeof".
func kindsOfType(x any) []*kind {
	if key, arg := single(x); key == "typeof" {
		return kindsOf(arg)
	}
	var all []*kind
	for _, names := range strs(x) {
		for name := range strings.SplitSeq(names, " . ") {
			if name == "verdict" {
				continue
			}
			k := kindsOfTypes[name]
			if k == nil {
				k = other
			}
			all = append(all, k)
		}
	}
	return all
}

func readSet(name string, elements []any, keys, data []*kind) *trace.Set {
	s := &trace.Set{Name: name, Elements: make([]trace.Element, 0, len(elements))}
	for _, x := range elements {
		e, ok := readElement(x, keys, data)
		if !ok {
			s.Unknown = strings.TrimSpace("set "+name) + " has an element that is not known: " + elementText(x, keys, data)
			return s
		}
		s.Elements = append(s.Elements, e)
	}
	return s
}

func readElement(x any, keys, data []*kind) (e trace.Element, ok bool) {
	if pair, isPair := x.([]any); isPair && len(pair) == 2 {
		x = pair[0]
		if verdict, isVerdict := verdictOf(pair[1]); isVerdict {
			e.Verdict = verdict
		} else if e.Data, ok = values(pair[1], data); !ok {
			return e, false
		}
	}
	x = bare(x)
	if x == "*" {
		return e, true
	}
	parts := partsOf(x)
	if len(parts) != len(keys) {
		return e, false
	}
	for i, part := range parts {
		r, known := keys[i].ranges(part)
		if !known {
			return e, false
		}
		e.Key = append(e.Key, r)
	}
	return e, true
}

// bare returns an element without its timeout, counter and comment.
func bare(x any) any {
	if key, arg := single(x); key == "elem" {
		a, _ := arg.(map[string]any)
		return a["val"]
	}
	return x
}

func partsOf(x any) []any {
	if key, arg := single(x); key == "concat" {
		parts, _ := arg.([]any)
		return parts
	}
	return []any{x}
}

func values(x any, kinds []*kind) (all []trace.Value, ok bool) {
	parts := partsOf(bare(x))
	for i, part := range parts {
		v, known := at(kinds, i).value(part)
		if !known {
			return nil, false
		}
		all = append(all, v)
	}
	return all, len(all) > 0
}
