package routes

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// ruleEntry is a rule by its keys: that a key is there may be all that it says.
type ruleEntry map[string]json.RawMessage

// harmless are the keys that do not decide over the route. A detached interface does not exist, so no packet has its name.
var harmless = map[string]bool{
	"priority": true, "protocol": true, "flow_from": true, "flow_to": true, "realms": true, "iif_detached": true, "oif_detached": true,
}

// setters read the keys that trace knows.
var setters = map[string]func(r *trace.RoutingRule, e ruleEntry, value string) error{
	"src": func(r *trace.RoutingRule, e ruleEntry, v string) (err error) {
		r.From, err = e.prefix(v, "srclen")
		return err
	},
	"dst": func(r *trace.RoutingRule, e ruleEntry, v string) (err error) {
		r.To, err = e.prefix(v, "dstlen")
		return err
	},
	"iif": func(r *trace.RoutingRule, _ ruleEntry, v string) error { r.IIF = v; return nil },
	"oif": func(r *trace.RoutingRule, _ ruleEntry, v string) error { r.OIF = v; return nil },
	"not": func(r *trace.RoutingRule, _ ruleEntry, _ string) error { r.Not = true; return nil },
	"nop": func(r *trace.RoutingRule, _ ruleEntry, _ string) error { r.Action = "nop"; return nil },
	"fwmark": func(r *trace.RoutingRule, e ruleEntry, v string) (err error) {
		r.Mark, err = number[uint32](v)
		if e["fwmask"] == nil {
			r.Mask = math.MaxUint32
		}
		return err
	},
	"fwmask": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		r.Mask, err = number[uint32](v)
		return err
	},
	"uid_start": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		r.UIDLo, err = number[uint32](v)
		return err
	},
	"uid_end": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		r.UIDHi, err = number[uint32](v)
		return err
	},
	"table":  func(r *trace.RoutingRule, _ ruleEntry, v string) error { r.Table = v; return nil },
	"action": func(r *trace.RoutingRule, _ ruleEntry, v string) error { r.Action = v; return nil },
	"goto": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		r.Action = "goto"
		r.Goto, err = strconv.Atoi(v)
		return err
	},
	"unresolved": func(r *trace.RoutingRule, _ ruleEntry, _ string) error { r.Action = "nop"; return nil },
	"suppress_prefixlen": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		n, err := number[uint8](v)
		r.MinPrefix = int(n) + 1
		return err
	},
	"ipproto": func(r *trace.RoutingRule, _ ruleEntry, v string) (err error) {
		r.Protocol, err = protocol(v)
		return err
	},
	"sport": func(r *trace.RoutingRule, _ ruleEntry, v string) error { return ports(&r.Sport, v, v) },
	"dport": func(r *trace.RoutingRule, _ ruleEntry, v string) error { return ports(&r.Dport, v, v) },
	"sport_start": func(r *trace.RoutingRule, e ruleEntry, v string) error {
		return ports(&r.Sport, v, unquote(e["sport_end"]))
	},
	"dport_start": func(r *trace.RoutingRule, e ruleEntry, v string) error {
		return ports(&r.Dport, v, unquote(e["dport_end"]))
	},
	"srclen": nil, "dstlen": nil, "sport_end": nil, "dport_end": nil, // read with the other
}

func addRules(r *trace.Routing, list []ruleEntry) error {
	var read []trace.RoutingRule
	for i, entry := range list {
		if len(entry) == 0 {
			continue
		}
		rule, err := entry.read()
		if err != nil {
			return fmt.Errorf("rule %d: %w", i+1, err)
		}
		read = append(read, rule)
	}
	family := familyOf(read)
	for i := range read {
		read[i].Family = family
	}
	r.Rules = append(r.Rules, read...)
	return nil
}

func familyOf(rules []trace.RoutingRule) trace.Family {
	for _, rule := range rules {
		for _, p := range []netip.Prefix{rule.From, rule.To} {
			if p.IsValid() && p.Addr().Is6() {
				return trace.IP6
			}
			if p.IsValid() {
				return trace.IP
			}
		}
	}
	if slices.ContainsFunc(rules, func(r trace.RoutingRule) bool { return r.Table == tableDefault }) {
		return trace.IP
	}
	return trace.IP6
}

func (e ruleEntry) read() (trace.RoutingRule, error) {
	rule := trace.RoutingRule{UIDHi: math.MaxUint32}
	priority, err := strconv.Atoi(unquote(e["priority"]))
	if err != nil {
		return rule, fmt.Errorf("the priority is no number")
	}
	rule.Priority = priority
	for _, key := range slices.Sorted(maps.Keys(e)) {
		set, ok := setters[key]
		switch {
		case !ok && !harmless[key]:
			rule.Unknown = key
		case set != nil:
			if err := set(&rule, e, unquote(e[key])); err != nil {
				return rule, fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	if rule.Action == "" && rule.Table == "" && rule.Unknown == "" {
		rule.Unknown = "no table"
	}
	return rule, nil
}

func (e ruleEntry) prefix(addr, lenKey string) (netip.Prefix, error) {
	if addr == "all" {
		return netip.Prefix{}, nil
	}
	a, err := parseAddr(addr)
	if err != nil {
		return netip.Prefix{}, err
	}
	length := a.BitLen()
	if raw := e[lenKey]; raw != nil {
		if length, err = strconv.Atoi(string(raw)); err != nil || length < 0 || length > a.BitLen() {
			return netip.Prefix{}, fmt.Errorf("%s is no length of a prefix", raw)
		}
	}
	return netip.PrefixFrom(a, length).Masked(), nil
}

func number[T ~uint8 | ~uint16 | ~uint32](s string) (T, error) {
	n, err := strconv.ParseUint(s, 0, 32)
	if err == nil && uint64(T(n)) != n {
		err = fmt.Errorf("%s is too large", s)
	}
	return T(n), err
}

func ports(to *[2]uint16, lo, hi string) (err error) {
	if to[0], err = number[uint16](lo); err != nil {
		return err
	}
	to[1], err = number[uint16](hi)
	return err
}

var protocols = map[string]uint8{
	"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58, "ospf": 89, "sctp": 132, "udplite": 136,
}

func protocol(s string) (uint8, error) {
	name := strings.TrimPrefix(s, "ipproto-") // ip prints a protocol without a name so
	if n, ok := protocols[name]; ok {
		return n, nil
	}
	return number[uint8](name)
}
