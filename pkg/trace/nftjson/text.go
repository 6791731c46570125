package nftjson

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// text writes a constant as nft does.
func (k *kind) text(x any) string {
	switch x := x.(type) {
	case json.Number:
		return k.numberText(string(x))
	case string:
		if strings.HasPrefix(x, "@") {
			return x
		}
		if _, err := strconv.Atoi(x); !k.quoted || err == nil && k.format == "unquoted" {
			return x
		}
		return `"` + x + `"`
	case bool:
		return map[bool]string{true: "exists", false: "missing"}[x]
	case []any:
		return join(x, ",", k.text)
	}
	return compact(x)
}

func (k *kind) numberText(n string) string {
	v, err := strconv.ParseUint(n, 10, 64)
	switch {
	case err != nil:
	case k.format == "duration":
		return duration(v)
	case strings.HasPrefix(k.format, "0x"):
		return fmt.Sprintf(k.format, v)
	}
	return n
}

// duration writes seconds as nft does: 1d2h3m4s.
func duration(s uint64) string {
	var text strings.Builder
	for _, unit := range []struct {
		name    string
		seconds uint64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}} {
		if n := s / unit.seconds; n > 0 {
			fmt.Fprint(&text, n, unit.name)
		}
		s %= unit.seconds
	}
	return cmp.Or(text.String(), "0s")
}

func join(all []any, separator string, text func(any) string) string {
	texts := make([]string, len(all))
	for i, one := range all {
		texts[i] = text(one)
	}
	return strings.Join(texts, separator)
}

// compact is the text of what has no text in nft's language.
func compact(x any) string {
	data, err := json.Marshal(x)
	if err != nil {
		return fmt.Sprint(x)
	}
	return string(data)
}

// precedence of nft's operators: the lower binds tighter.
var precedence = map[string]int{"<<": 1, ">>": 1, "&": 2, "^": 3, "|": 4}

// exprText writes an expression or a constant as nft does. kinds are those of a constant, one for each part of a concatenation.
func exprText(x any, kinds []*kind) string {
	key, arg := single(x)
	list, _ := arg.([]any)
	k := at(kinds, 0)
	switch key {
	case "":
		return k.text(x)
	case "&", "|", "^", "<<", ">>":
		return calculationText(key, list, kinds)
	case "concat":
		return concatText(list, kinds)
	case "set":
		return setText(arg, kinds, nil)
	case "range":
		return join(list, "-", k.text)
	case "prefix":
		a, _ := arg.(map[string]any)
		return k.text(a["addr"]) + template("/{len}", arg)
	case "elem":
		return elemText(arg, kinds)
	case "map":
		return mapText("map", arg, kinds)
	}
	if text := readText(key, arg); text != "" {
		return text
	}
	return compact(x)
}

// template fills the properties of an object in for their names in braces. A part in brackets is left out if it has none of them.
func template(pattern string, arg any) string {
	a, _ := arg.(map[string]any)
	var out strings.Builder
	for pattern != "" {
		open := strings.IndexAny(pattern, "{[")
		if open < 0 {
			break
		}
		out.WriteString(pattern[:open])
		closing := strings.IndexByte(pattern, pattern[open]+2)
		inner := pattern[open+1 : closing]
		if pattern[open] == '[' {
			name := inner[strings.IndexByte(inner, '{')+1 : strings.IndexByte(inner, '}')]
			if v := a[name]; v != nil && v != json.Number("0") && v != false {
				out.WriteString(template(inner, arg))
			}
		} else if a[inner] != nil {
			fmt.Fprint(&out, a[inner])
		}
		pattern = pattern[closing+1:]
	}
	return out.String() + pattern
}

// reads are the texts of what an expression reads.
var reads = map[string]string{
	"ct": "ct[ {dir}] {key}", "exthdr": "{name} {field}", "tcp option": "tcp option {name}[ {field}]", "ip option": "ip option {name}[ {field}]",
	"sctp chunk": "sctp chunk {name}[ {field}]", "dccp option": "dccp option {type}", "rt": "rt[ {family}] {key}", "socket": "socket {key}",
	"ipsec": "ipsec {dir}[ spnum {spnum}][ {family}] {key}", "osf": "osf[ ttl {ttl}] {key}",
	"numgen": "numgen {mode} mod {mod}[ offset {offset}]", "symhash": "symhash mod {mod}[ offset {offset}]",
}

func readText(key string, arg any) string {
	a, _ := arg.(map[string]any)
	switch {
	case key == "payload" && a["base"] != nil:
		return template("@{base},{offset},{len}", arg)
	case key == "payload":
		return template("{protocol} {field}", arg)
	case key == "tcp option" && a["base"] != nil:
		return template("tcp option {base}", arg)
	case key == "exthdr" && a["field"] == nil:
		return template("exthdr {name}", arg)
	case key == "fib":
		return "fib " + strings.Join(strs(a["flags"]), " . ") + template(" {result}", arg)
	case key == "jhash":
		text := "jhash " + exprText(a["expr"], kindsOf(a["expr"])) + template(" mod {mod}", arg)
		if seed := a["seed"]; seed != nil {
			text += " seed " + hex.text(seed)
		}
		return text + template("[ offset {offset}]", arg)
	case key == "meta":
		if name, _ := a["key"].(string); unqualified[name] {
			return name
		}
		return template("meta {key}", arg)
	case reads[key] != "":
		return template(reads[key], arg)
	}
	return ""
}

func calculationText(operator string, operands []any, kinds []*kind) string {
	if len(operands) > 0 && reading(operands[0]) {
		kinds = kindsOf(operands[0])
	}
	return join(operands, " "+operator+" ", func(x any) string {
		if n, ok := x.(json.Number); ok && precedence[operator] == precedence["<<"] {
			return string(n)
		}
		text := exprText(x, kinds)
		inner, _ := single(x)
		if precedence[inner] > precedence[operator] {
			return "(" + text + ")"
		}
		return text
	})
}

// reading says whether x is an expression, and no constant.
func reading(x any) bool {
	switch key, _ := single(x); key {
	case "", "set", "range", "prefix", "elem":
		return false
	}
	return true
}

func concatText(parts []any, kinds []*kind) string {
	texts := make([]string, len(parts))
	for i, part := range parts {
		one := []*kind{at(kinds, i)}
		if reading(part) {
			one = kindsOf(part)
		}
		texts[i] = exprText(part, one)
	}
	return strings.Join(texts, " . ")
}

// setText writes the elements of a set, or the name of one. data are the kinds of a map's data.
func setText(x any, keys, data []*kind) string {
	if key, arg := single(x); key == "set" {
		x = arg
	}
	elements, ok := x.([]any)
	if !ok {
		return exprText(x, []*kind{other})
	}
	return "{ " + join(elements, ", ", func(e any) string { return elementText(e, keys, data) }) + " }"
}

func elementText(x any, keys, data []*kind) string {
	pair, ok := x.([]any)
	if !ok || len(pair) != 2 {
		return keyText(x, keys)
	}
	if verdict := verdictText(pair[1]); verdict != "" {
		return keyText(pair[0], keys) + " : " + verdict
	}
	return keyText(pair[0], keys) + " : " + exprText(pair[1], data)
}

func keyText(x any, keys []*kind) string {
	if x == "*" {
		return "*"
	}
	return exprText(x, keys)
}

// elemText writes an element with its timeout and comment.
func elemText(arg any, kinds []*kind) string {
	a, _ := arg.(map[string]any)
	text := keyText(a["val"], kinds)
	if reading(a["val"]) {
		text = exprText(a["val"], kindsOf(a["val"]))
	}
	if a["timeout"] != nil {
		text += " timeout " + seconds.text(a["timeout"])
	}
	if a["comment"] != nil {
		text += " comment " + quoted.text(a["comment"])
	}
	return text
}

// mapText writes "KEY map { ... }" and "KEY vmap { ... }".
func mapText(word string, arg any, data []*kind) string {
	a, _ := arg.(map[string]any)
	keys := kindsOf(a["key"])
	return exprText(a["key"], keys) + " " + word + " " + setText(a["data"], keys, data)
}

func verdictText(x any) string {
	v, ok := verdictOf(x)
	if !ok {
		return ""
	}
	key, _ := single(x)
	return strings.TrimSuffix(key+" "+v.Chain, " ")
}
