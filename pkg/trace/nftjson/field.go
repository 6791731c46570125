package nftjson

import (
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// property is what an expression reads. Field is 0 if a walk does not know it.
type property struct {
	kind  *kind
	field trace.Field
}

var payloads = map[string]property{
	"ip saddr": {address, trace.Saddr}, "ip daddr": {address, trace.Daddr}, "ip protocol": {protocol, trace.L4Proto},
	"ip6 saddr": {address, trace.Saddr}, "ip6 daddr": {address, trace.Daddr}, "ip6 nexthdr": {protocol, trace.L4Proto},
	"tcp flags": {tcpFlags, trace.TCPFlags}, "icmp type": {icmpType, trace.ICMPType}, "icmp code": {icmpCode, trace.ICMPCode},
	"icmpv6 type": {icmp6Type, trace.ICMPType}, "icmpv6 code": {icmp6Code, trace.ICMPCode},
}

var metas = map[string]property{
	"l4proto": {protocol, trace.L4Proto}, "nfproto": {family, trace.NFProto}, "protocol": {etherType, trace.NFProto},
	"iif": {ifindex, trace.IIFName}, "oif": {ifindex, trace.OIFName}, "iifname": {ifname, trace.IIFName},
	"oifname": {ifname, trace.OIFName},
	"mark":    {mark, trace.Mark}, "skuid": {number, trace.SKUID},
	"skgid": {number, trace.SKGID}, "iifgroup": {quoted, 0}, "oifgroup": {quoted, 0},
	"ibrname": {quoted, 0}, "obrname": {quoted, 0}, "iifkind": {quoted, 0}, "oifkind": {quoted, 0}, "sdif": {index, 0}, "sdifname": {quoted, 0},
	"rtclassid": {index, 0}, "time": {quoted, 0}, "hour": {quoted, 0}, "day": {quoted, 0},
}

// unqualified are the keys that nft writes without "meta".
var unqualified = map[string]bool{"iif": true, "oif": true, "iifname": true, "oifname": true, "iifgroup": true, "oifgroup": true}

// cts have the keys of ct, without "ip " and "ip6 ". A key of one direction is in ctsOfDirections.
var cts = map[string]property{
	"state": {ctState, trace.CTState}, "status": {ctStatus, trace.CTStatus}, "direction": {ctDirection, trace.CTDir},
	"mark": {mark, trace.CTMark}, "zone": {number, trace.CTZone},
	"helper": {quoted, 0}, "expiration": {seconds, 0}, "label": {labels, 0},
	"event": {labels, 0}, "l3proto": {family, 0}, "protocol": {protocol, 0},
}

var ctsOfDirections = map[string]property{
	"original saddr": {address, trace.CTOrigSaddr}, "original daddr": {address, trace.CTOrigDaddr},
	"original proto-src": {number, trace.CTOrigSport}, "original proto-dst": {number, trace.CTOrigDport},
	"reply saddr": {address, 0}, "reply daddr": {address, 0},
}

var fibs = map[string]property{
	"type saddr":     {routeType, trace.SaddrType},
	"type daddr":     {routeType, trace.DaddrType},
	"type saddr iif": {routeType, trace.SaddrTypeIIF},
	"type daddr iif": {routeType, trace.DaddrTypeIIF}, "type daddr oif": {routeType, trace.DaddrTypeOIF},
}

// propertyOf returns what the expression reads, by its key and argument.
func propertyOf(key string, arg any) property {
	a, _ := arg.(map[string]any)
	name, _ := a["key"].(string)
	switch key {
	case "payload":
		return payloadOf(a)
	case "meta":
		return orOther(metas[name])
	case "ct":
		return ctOf(a, name)
	case "fib":
		return fibOf(a)
	case "socket":
		if name == "mark" {
			return property{kind: mark}
		}
	case "rt":
		if name == "classid" {
			return property{kind: index}
		}
	case "osf":
		return property{kind: quoted}
	case "numgen", "jhash", "symhash":
		return property{kind: number}
	}
	return property{kind: other}
}

func orOther(p property) property {
	if p.kind == nil {
		p.kind = other
	}
	return p
}

func payloadOf(a map[string]any) property {
	proto, _ := a["protocol"].(string)
	field, _ := a["field"].(string)
	switch {
	case a["base"] != nil:
		return property{kind: hex}
	case field == "sport":
		return property{number, trace.Sport}
	case field == "dport":
		return property{number, trace.Dport}
	}
	return orOther(payloads[proto+" "+field])
}

func ctOf(a map[string]any, name string) property {
	dir, _ := a["dir"].(string)
	if dir == "" {
		return orOther(cts[name])
	}
	if _, address, ok := strings.Cut(name, " "); ok {
		name = address
	}
	return orOther(ctsOfDirections[dir+" "+name])
}

func fibOf(a map[string]any) property {
	result, _ := a["result"].(string)
	p := fibs[result+" "+strings.Join(strs(a["flags"]), " ")]
	switch {
	case p.kind != nil:
		return p
	case result == "type":
		return property{kind: routeType}
	}
	return property{kind: index}
}

// strs returns the strings of a list, or of one string.
func strs(x any) []string {
	if s, ok := x.(string); ok {
		return []string{s}
	}
	list, _ := x.([]any)
	var all []string
	for _, one := range list {
		if s, ok := one.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// A need is what a packet must be for an expression to read it. nft does not print the matches that check it.
type need struct {
	field trace.Field
	value uint64
}

const (
	protoICMP  = 1
	protoTCP   = 6
	protoICMP6 = 58
)

var (
	needIPv4  = need{trace.NFProto, 2}
	needIPv6  = need{trace.NFProto, 10}
	needTCP   = need{trace.L4Proto, protoTCP}
	needsOfIP = map[string][]need{"ip": {needIPv4}, "ip6": {needIPv6}}
)

var needsOfPayloads = map[string][]need{
	"ip": {needIPv4}, "ip6": {needIPv6}, "tcp": {needTCP}, "udp": {{trace.L4Proto, 17}}, "udplite": {{trace.L4Proto, 136}},
	"sctp": {{trace.L4Proto, 132}}, "dccp": {{trace.L4Proto, 33}}, "ah": {{trace.L4Proto, 51}}, "esp": {{trace.L4Proto, 50}},
	"comp": {{trace.L4Proto, 108}}, "igmp": {needIPv4, {trace.L4Proto, 2}}, "icmp": {needIPv4, {trace.L4Proto, protoICMP}},
	"icmpv6": {needIPv6, {trace.L4Proto, protoICMP6}},
}

// needs returns what all expressions in x need, in order.
func needs(x any) []need {
	switch x := x.(type) {
	case []any:
		var all []need
		for _, one := range x {
			all = append(all, needs(one)...)
		}
		return all
	case map[string]any:
		key, arg := single(x)
		if own := needsOf(key, arg); own != nil {
			return own
		}
		if key != "" {
			return needs(arg)
		}
		var all []need
		for _, part := range []string{"left", "key", "value", "addr", "port", "expr", "elem", "val"} {
			all = append(all, needs(x[part])...)
		}
		return all
	}
	return nil
}

func needsOf(key string, arg any) []need {
	a, _ := arg.(map[string]any)
	name, _ := a["key"].(string)
	switch key {
	case "payload":
		proto, _ := a["protocol"].(string)
		return needsOfPayloads[proto]
	case "ct":
		if family, _, ok := strings.Cut(name, " "); ok {
			return needsOfIP[family]
		}
	case "exthdr":
		return []need{needIPv6}
	case "ip option":
		return []need{needIPv4}
	case "tcp option":
		return []need{needTCP}
	}
	return nil
}
