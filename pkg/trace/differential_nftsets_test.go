package trace_test

import (
	"fmt"
	"net/netip"
	"strings"
)

// nftSet is a named set or map.
type nftSet struct {
	name, key, data string // what the key is made of; data is "" for a set
}

// nftKeys are what sets and maps may be of, with their types.
var nftKeys = map[string]struct{ expr, kind string }{
	"addr4": {"ip daddr", "ipv4_addr"}, "addr6": {"ip6 daddr", "ipv6_addr"}, "src4": {"ip saddr", "ipv4_addr"},
	"src6": {"ip6 saddr", "ipv6_addr"}, "port": {"th dport", "inet_service"}, "proto": {"meta l4proto", "inet_proto"},
	"iface": {"iifname", "ifname"}, "mark": {"meta mark", "mark"},
}

var nftConcats = []string{
	"addr4", "addr6", "port", "proto", "mark", "iface", "addr4 port", "addr6 port", "addr4 proto port", "addr6 proto port", "src4 addr4",
	"src6 addr6", "proto port", "iface port",
}

// fits reports whether a key may be used here.
func (g *nftGenerator) fits(key string) bool {
	return (g.family != "ip" || !strings.Contains(key, "6")) && (g.family != "ip6" || !strings.Contains(key, "4"))
}

func (g *nftGenerator) key() string {
	for {
		if k := pick(g.dice, nftConcats); g.fits(k) {
			return k
		}
	}
}

// set declares a set or a map of marks.
func (g *nftGenerator) set(name string, isMap bool) string {
	s := nftSet{name: name, key: g.key()}
	data, declared := "", ""
	if isMap {
		s.data, declared = "mark", " : mark"
	}
	g.sets = append(g.sets, s)
	intervals := g.oneIn(2)
	var elements []string
	for range 2 + g.IntN(4) {
		if isMap {
			data = " : " + g.number()
		}
		elements = g.element(elements, s.key, data, intervals)
	}
	flags := ""
	if intervals {
		flags = "flags interval; "
	}
	word := "set"
	if isMap {
		word = "map"
	}
	list := strings.Join(elements, ", ")
	return fmt.Sprintf("\t%s %s { type %s%s; %selements = { %s }; }\n", word, name, kindsOf(s.key), declared, flags, list)
}

func kindsOf(key string) string {
	var all []string
	for k := range strings.FieldsSeq(key) {
		all = append(all, nftKeys[k].kind)
	}
	return strings.Join(all, " . ")
}

func exprOf(key string) string {
	var all []string
	for k := range strings.FieldsSeq(key) {
		all = append(all, nftKeys[k].expr)
	}
	return strings.Join(all, " . ")
}

// element adds an element whose key no other one overlaps.
func (g *nftGenerator) element(elements []string, key, data string, intervals bool) []string {
	var parts []string
	for k := range strings.FieldsSeq(key) {
		parts = append(parts, g.part(k, intervals))
	}
	e := strings.Join(parts, " . ")
	for _, other := range elements {
		if o, _, _ := strings.Cut(other, " : "); o == e || intervals && overlap(o, e) {
			return elements
		}
	}
	return append(elements, e+data)
}

// overlap reports whether two keys with ranges may overlap: in doubt they do.
func overlap(a, b string) bool {
	x, y := strings.Split(a, " . "), strings.Split(b, " . ")
	for i := range x {
		if disjoint(x[i], y[i]) {
			return false
		}
	}
	return true
}

func disjoint(a, b string) bool {
	simple := func(s string) bool { return !strings.ContainsAny(s, "-/") || strings.HasPrefix(s, "\"") }
	if simple(a) && simple(b) {
		return a != b
	}
	p, errP := netip.ParsePrefix(a)
	if q, errQ := netip.ParsePrefix(b); errP == nil && errQ == nil {
		return !p.Overlaps(q)
	}
	return false
}

func (g *nftGenerator) part(k string, intervals bool) string {
	switch k {
	case "addr4", "src4", "addr6", "src6":
		v6 := strings.HasSuffix(k, "6")
		if intervals {
			return g.prefixOf(v6)
		}
		return g.addr(v6)
	case "port":
		if intervals && g.oneIn(3) {
			return g.word("80-443 7000-8080 1-79 9000-10000")
		}
		return g.somePort()
	case "proto":
		return g.word("tcp udp")
	case "iface":
		return g.word("\"left0\" \"right0\" \"lo\"")
	}
	return g.word("0x1 0x10 0x100 0x11 0x0")
}

// named looks a named set up.
func (g *nftGenerator) named(v6 bool, transport string) string {
	s := pick(g.dice, g.sets)
	if s.data != "" || !g.usable(s.key, v6, transport) {
		return ""
	}
	return exprOf(s.key) + " " + g.op() + "@" + s.name
}

// usable reports whether what the key reads goes with the rule's other matches.
func (g *nftGenerator) usable(key string, v6 bool, transport string) bool {
	if strings.Contains(key, "4") && v6 || strings.Contains(key, "6") && !v6 {
		return false
	}
	if strings.Contains(key, "iface") && (g.hook == "output" || g.hook == "postrouting") {
		return false
	}
	return !strings.Contains(key, "port") || transport != ""
}

// verdicts declares a map of verdicts.
func (g *nftGenerator) verdicts(users []string) string {
	s := nftSet{name: "v0", key: g.key(), data: "verdict"}
	g.sets = append(g.sets, s)
	var elements []string
	for range 2 + g.IntN(3) {
		verdict := pick(g.dice, []string{"accept", "drop", "return", "continue", "jump " + users[2], "goto " + users[2]})
		elements = g.element(elements, s.key, " : "+verdict, false)
	}
	return fmt.Sprintf("\tmap v0 { type %s : verdict; elements = { %s }; }\n", kindsOf(s.key), strings.Join(elements, ", "))
}

// vmap is a lookup in a map of verdicts, or in one of marks.
func (g *nftGenerator) vmap(v6 bool, transport string) string {
	s := pick(g.dice, g.sets[3:])
	if !g.usable(s.key, v6, transport) {
		if transport == "" {
			return "continue"
		}
		return "th dport vmap { 80 : accept, 7000 : drop, 8000-9000 : return }"
	}
	if s.data == "mark" {
		return "meta mark set " + exprOf(s.key) + " map @" + s.name
	}
	if g.kind == "nat" || len(g.later) == 0 {
		return "meta mark vmap { 0x1 : accept, 0x10 : return, 0x100 : continue }"
	}
	return exprOf(s.key) + " vmap @" + s.name
}
