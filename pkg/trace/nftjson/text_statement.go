package nftjson

import (
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// statementText writes a statement as nft's own language has it.
func statementText(x any, family trace.Family) string {
	if text, ok := x.(string); ok {
		return text // nft writes what it has no JSON for in its own language
	}
	if text := verdictText(x); text != "" {
		return text
	}
	key, arg := single(x)
	a, _ := arg.(map[string]any)
	if name, ok := arg.(string); ok {
		return namedText(key, name)
	}
	switch key {
	case "":
		return compact(x)
	case "match":
		return matchText(a)
	case "vmap":
		return mapText("vmap", arg, nil)
	case "mangle":
		return mangleText(a)
	case "counter":
		return counterText(a)
	case "reject":
		return rejectText(family, a)
	case "limit":
		return limitText(a)
	case "quota":
		return "quota " + over(a) + template("{val} {val_unit}[ used {used} {used_unit}]", arg)
	case "ct count":
		return "ct count " + over(a) + template("{val}", arg)
	case "log":
		return logText(a)
	case "dnat", "snat", "redirect", "masquerade", "tproxy":
		return natText(key, a)
	case "set":
		return dynamicText(a)
	case "map":
		return dynamicMapText(a)
	case "dup", "fwd":
		return copyText(family, key, a)
	case "queue":
		return queueText(a)
	case "synproxy":
		return strings.Join(append([]string{template("synproxy[ mss {mss}][ wscale {wscale}]", arg)}, strs(a["flags"])...), " ")
	case "flow":
		return template("flow {op} {flowtable}", arg)
	case "xt":
		return template("xt[ {type}][ {name}]", arg)
	case "reset":
		return "reset " + exprText(arg, nil)
	}
	if arg == nil {
		return key
	}
	return key + " " + compact(arg)
}

// namedText writes a statement that refers to an object of the table.
func namedText(key, name string) string {
	switch {
	case strings.HasPrefix(key, "ct "):
		return key + " set " + quoted.text(name)
	case key == "secmark":
		return "meta secmark set " + quoted.text(name)
	}
	return key + " name " + quoted.text(name)
}

func matchText(a map[string]any) string {
	kinds := kindsOf(a["left"])
	left, right := exprText(a["left"], kinds), exprText(a["right"], kinds)
	if reading(a["right"]) {
		right = exprText(a["right"], kindsOf(a["right"]))
	}
	op, _ := a["op"].(string)
	operator, operands := single(a["left"])
	if both, _ := operands.([]any); operator == "&" && len(both) == 2 && (op == "==" || op == "!=") {
		if mask, isList := both[1].([]any); isList {
			return exprText(both[0], kinds) + strings.TrimSuffix(" "+op, " ==") + " " + right + " / " + at(kinds, 0).text(mask)
		}
	}
	implied := op == "in" || op == "" || op == "==" && precedence[operator] == 0 && (!at(kinds, 0).bits || !isValue(a["right"]))
	if implied {
		return left + " " + right
	}
	return left + " " + op + " " + right
}

// isValue says whether x is one constant, and no set.
func isValue(x any) bool {
	if name, ok := x.(string); ok {
		return !strings.HasPrefix(name, "@")
	}
	key, _ := single(x)
	return key != "set"
}

func mangleText(a map[string]any) string {
	kinds := kindsOf(a["key"])
	return exprText(a["key"], kinds) + " set " + exprText(a["value"], kinds)
}

// usualReject are the answers of "reject" alone.
var usualReject = map[trace.Family]string{trace.IP: "icmp", trace.IP6: "icmpv6", trace.Inet: "icmpx"}

func rejectText(family trace.Family, a map[string]any) string {
	switch {
	case a["type"] == "tcp reset":
		return "reject with tcp reset"
	case a["expr"] == nil || a["expr"] == "port-unreachable" && a["type"] == usualReject[family]:
		return "reject"
	}
	return template("reject with {type} {expr}", a)
}

func over(a map[string]any) string {
	if a["inv"] == true {
		return "over "
	}
	return ""
}

func limitText(a map[string]any) string {
	text := "limit"
	if a["rate"] == nil {
		return text
	}
	unit, isBytes := a["rate_unit"].(string)
	if isBytes && unit != "packets" {
		return text + " rate " + over(a) + template("{rate} {rate_unit}/{per}[ burst {burst} {burst_unit}]", a)
	}
	text += " rate " + over(a) + template("{rate}/{per}", a)
	if number.text(a["burst"]) != "5" {
		text += template("[ burst {burst} packets]", a)
	}
	return text
}

func logText(a map[string]any) string {
	text := "log"
	if prefix, ok := a["prefix"].(string); ok {
		text += " prefix " + quoted.text(prefix)
	}
	if a["group"] != nil {
		text += template(" group {group}", a)
	}
	texts := []string{text + template("[ snaplen {snaplen}][ queue-threshold {queue-threshold}][ level {level}]", a)}
	flags := strs(a["flags"])
	for _, layer := range []string{"tcp", "ip"} {
		var own []string
		flags = slices.DeleteFunc(flags, func(flag string) bool {
			name, ok := strings.CutPrefix(flag, layer+" ")
			if ok {
				own = append(own, name)
			}
			return ok
		})
		if len(own) > 0 {
			texts = append(texts, "flags "+layer+" "+strings.Join(own, ","))
		}
	}
	for _, flag := range flags {
		texts = append(texts, "flags "+flag)
	}
	return strings.Join(texts, " ")
}

func dynamicText(a map[string]any) string {
	texts := []string{template("{op} {set}", a), "{", exprText(a["elem"], kindsOf(a["elem"]))}
	own, isList := a["stmt"].([]any)
	if !isList && a["stmt"] != nil {
		own = []any{a["stmt"]}
	}
	for _, one := range own {
		texts = append(texts, statementText(one, ""))
	}
	return strings.Join(append(texts, "}"), " ")
}

func dynamicMapText(a map[string]any) string {
	key, data := a["elem"], a["data"]
	return template("{op} {map} ", a) + "{ " + exprText(key, kindsOf(key)) + " : " + exprText(data, kindsOf(data)) + " }"
}

func natText(key string, a map[string]any) string {
	text := key + template("[ {family}]", a)
	isPrefix := slices.Contains(strs(a["type_flags"]), "prefix")
	if isPrefix {
		text += " prefix"
	}
	addr, port := "", ""
	if a["addr"] != nil {
		addr = exprText(a["addr"], []*kind{address, number})
	}
	if a["port"] != nil {
		port = ":" + exprText(a["port"], []*kind{number})
		addr = bracketed(a["addr"], addr)
	}
	if addr+port != "" {
		text += " to " + addr + port
	}
	flags := slices.DeleteFunc(strs(a["flags"]), func(flag string) bool { return flag == "netmap" && isPrefix })
	if len(flags) > 0 {
		text += " " + strings.Join(flags, ",")
	}
	return text
}

// bracketed puts IPv6 addresses that a port follows into brackets.
func bracketed(x any, text string) string {
	ends := []string{text}
	if key, arg := single(x); key == "range" {
		ends = strs(arg)
	} else if _, isText := x.(string); !isText {
		return text
	}
	for i, end := range ends {
		if strings.Contains(end, ":") {
			ends[i] = "[" + end + "]"
		}
	}
	return strings.Join(ends, "-")
}

func copyText(family trace.Family, key string, a map[string]any) string {
	text := key + template("[ {family}]", a) + " to"
	switch {
	case a["addr"] == nil:
		return text + " " + exprText(a["dev"], []*kind{ifindex})
	case a["dev"] != nil:
		return text + " " + exprText(a["addr"], nil) + " device " + exprText(a["dev"], []*kind{ifindex})
	case family == trace.Netdev:
		return text + " " + exprText(a["addr"], []*kind{ifindex})
	}
	return text + " " + exprText(a["addr"], nil)
}

func queueText(a map[string]any) string {
	text := "queue"
	if flags := strs(a["flags"]); len(flags) > 0 {
		text += " flags " + strings.Join(flags, ",")
	}
	if a["num"] != nil {
		text += " to " + exprText(a["num"], []*kind{number})
	}
	return text
}

func counterText(a map[string]any) string {
	switch {
	case a["map"] != nil:
		return "counter name " + mapText("map", a["map"], []*kind{quoted})
	case a == nil:
		return "counter"
	}
	return template("counter packets {packets} bytes {bytes}", a)
}
