package trace_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

// nftGenerator makes a table in nft's language.
type nftGenerator struct {
	dice
	family string // inet, ip or ip6
	sets   []nftSet
	// chains that the chain at hand may call, and the hook that it is reached from; "" for several.
	later []string
	kind  string
	hook  string
	early bool // the chain at hand comes ahead of connection tracking
	zones bool // such chains put connections into zones; they do not look at connections then, which are the rule's own template
}

const nftTables = 2

// nftables makes a ruleset of a few tables.
func (d dice) nftables() string {
	var b strings.Builder
	zones := d.oneIn(4)
	for i := range 1 + d.IntN(nftTables) {
		g := &nftGenerator{dice: d, zones: zones, family: d.word("inet inet ip ip6")}
		fmt.Fprintf(&b, "table %s t%d {\n%s}\n", g.family, i, g.table())
	}
	return b.String()
}

func (g *nftGenerator) v6() bool {
	switch g.family {
	case "ip":
		return false
	case "ip6":
		return true
	}
	return g.oneIn(2)
}

func (g *nftGenerator) table() string {
	var b strings.Builder
	users := []string{"a", "b", "c"}
	for i, name := range []string{"s0", "s1", "s2", "m0"} {
		b.WriteString(g.set(name, i == 3))
	}
	b.WriteString("\tset d0 { type inet_service; flags dynamic; size 1000; elements = { 53 }; }\n")
	b.WriteString(g.verdicts(users))
	for i, name := range slices.Backward(users) {
		g.later, g.hook, g.kind, g.early = users[i+1:], "", "filter", false
		fmt.Fprintf(&b, "\tchain %s {\n%s\t}\n", name, g.rules(3))
	}
	for i := range 2 + g.IntN(4) {
		b.WriteString(g.base(fmt.Sprint("base", i), users))
	}
	return b.String()
}

// base is a base chain. Those of type nat or route, and statements that belong to a hook, are only here.
func (g *nftGenerator) base(name string, users []string) string {
	g.kind = g.word("filter filter filter nat nat route")
	g.later = users
	priority := fmt.Sprint(pick(g.dice, []int{-310, -300, -250, -150, -100, -10, 0, 0, 0, 10, 50, 100, 150}))
	policy := ""
	g.early = false
	switch g.kind {
	case "nat":
		g.hook, g.later = g.word("prerouting input output postrouting"), nil
		priority = g.word("-150 -100 -100 0 100 100")
	case "route":
		g.hook = "output"
	default:
		g.hook = g.word("prerouting input forward output postrouting")
		g.early = (g.hook == "prerouting" || g.hook == "output") && (priority == "-310" || priority == "-300" || priority == "-250")
		if g.oneIn(16) {
			policy = " policy drop;"
		}
	}
	rules := g.rules(4)
	switch {
	case g.oneIn(2):
	case g.kind == "route":
		rules += "\t\tmeta mark set meta mark | " + g.word("0x100 0x200") + "\n"
	case g.kind == "nat" && (g.hook == "output" || g.hook == "prerouting"):
		rules += "\t\tmeta l4proto tcp redirect to :15001\n"
	case g.kind == "filter" && g.hook == "prerouting" && !g.early:
		rules += "\t\t" + g.tproxy(g.v6()) + " meta mark set 0x100 accept\n"
	}
	return fmt.Sprintf("\tchain %s {\n\t\ttype %s hook %s priority %s;%s\n%s\t}\n", name, g.kind, g.hook, priority, policy, rules)
}

func (g *nftGenerator) rules(most int) string {
	var b strings.Builder
	for range g.IntN(most + 1) {
		b.WriteString("\t\t" + g.rule() + "\n")
	}
	return b.String()
}

// rule is about one family, and has matches that fit each other.
func (g *nftGenerator) rule() string {
	v6, transport := g.v6(), ""
	var words []string
	if g.oneIn(2) {
		transport = g.word("tcp tcp udp")
		words = append(words, g.port(transport))
	}
	for range g.IntN(3) {
		if m := g.match(v6, transport); !slices.Contains(words, m) {
			words = append(words, m)
		}
	}
	if g.oneIn(6) {
		words = append(words, g.word("counter log"))
	}
	words = append(words, g.statement(v6, transport))
	if g.zones && (g.early || g.hook == "") {
		words = slices.DeleteFunc(words, func(w string) bool { return looksAtConnection.MatchString(w) })
	}
	if g.oneIn(8) {
		words = append(words, `comment "what it is for"`)
	}
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
	if len(words) == 0 || len(words) == 1 && strings.HasPrefix(words[0], "comment") {
		return "counter"
	}
	return strings.Join(words, " ")
}

var looksAtConnection = regexp.MustCompile(`ct (mark|status|direction|original)`)

func ipOf(v6 bool) string {
	if v6 {
		return "ip6"
	}
	return "ip"
}

// op is == or != ahead of a value.
func (g *nftGenerator) op() string {
	if g.oneIn(4) {
		return "!= "
	}
	return ""
}

func (g *nftGenerator) list(one func() string) string {
	var all []string
	for range 1 + g.IntN(4) {
		if v := one(); !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return "{ " + strings.Join(all, ", ") + " }"
}

func (g *nftGenerator) somePort() string { return g.word("53 80 443 7000 8080 15001") }

func (g *nftGenerator) port(transport string) string {
	key := transport + " " + g.word("dport dport dport sport")
	switch g.IntN(6) {
	case 0:
		return "meta l4proto " + transport
	case 1:
		return key + " " + g.op() + g.word("80-443 0-1023 7000-8080 20000-25000 1024-65535")
	case 2:
		return key + " " + g.op() + g.list(func() string { return g.somePort() })
	case 3:
		return key + " " + g.op() + g.word("{80-443,7000,8080-9000} {0-52,54-79} {20000-22000,80}")
	case 4:
		return key + " " + g.word("< > <= >=") + " " + g.word("443 7000 24000")
	}
	return key + " " + g.op() + g.somePort()
}

func (g *nftGenerator) addr(v6 bool) string { return g.dice.addr(v6).String() }

// addrRange is a range of addresses.
func (g *nftGenerator) addrRange(v6 bool) string {
	lo, hi := g.dice.addr(v6), g.dice.addr(v6)
	if hi.Less(lo) {
		lo, hi = hi, lo
	}
	return lo.String() + "-" + hi.String()
}

func (g *nftGenerator) addresses(v6 bool) string {
	switch g.IntN(5) {
	case 0:
		return g.prefixOf(v6)
	case 1:
		return g.addrRange(v6)
	case 2:
		return g.list(func() string { return g.addr(v6) })
	}
	return g.addr(v6)
}

// prefixOf is no prefix of length 0, which nft leaves out.
func (g *nftGenerator) prefixOf(v6 bool) string {
	for {
		if p := netip.MustParsePrefix(g.prefix(v6)); p.Bits() > 0 {
			return p.String()
		}
	}
}

func (g *nftGenerator) number() string { return g.word("0x1 0x10 0x100 0x11 0x4000 0x0") }

func (g *nftGenerator) match(v6 bool, transport string) string {
	ip := ipOf(v6)
	switch g.IntN(21) {
	case 0, 1:
		return ip + " " + g.word("saddr daddr daddr") + " " + g.op() + g.addresses(v6)
	case 2:
		mask, nets := "255.255.0.0", "10.1.0.0 10.2.0.0 127.0.0.0"
		if v6 {
			mask, nets = "ffff:ffff::", "fd01:: fd02:: ::"
		}
		return ip + " " + g.word("saddr daddr") + " & " + mask + " " + g.word("== !=") + " " + g.word(nets)
	case 3, 4:
		return g.link()
	case 5, 6:
		masked := "& " + g.number() + " " + g.word("== !=") + " " + g.number()
		return g.word("meta ct") + " mark " + pick(g.dice, []string{g.op() + g.number(), masked, g.op() + "{ 0x1, 0x10, 0x100-0x1ff }", "> 0xf"})
	case 7, 8:
		return "ct state " + g.op() + g.word("new established invalid untracked established,related new,untracked {new,established}")
	case 9:
		return "ct status " + pick(g.dice, []string{"dnat", "snat", "confirmed", "& seen-reply == 0", "& dnat == dnat", "! dnat"})
	case 10:
		original := "ct original " + ip + " " + g.word("saddr daddr") + " " + g.prefixOf(v6)
		return pick(g.dice, []string{"ct direction " + g.word("original reply"), original})
	case 11:
		return g.fib()
	case 12:
		return "meta " + g.word("skuid skgid") + " " + g.op() + g.word("0 1000 1337 1000-1337 {0,1337}")
	case 13:
		return g.named(v6, transport)
	case 14:
		return pick(g.dice, []string{"numgen random mod 2 == 0", "numgen inc mod 3 < 2", "numgen random mod 10 < 3", "numgen random mod 1 == 0"})
	case 15:
		if transport == "" { // nft refuses others ahead of a port
			return "meta l4proto " + g.op() + g.word("tcp udp icmp ipv6-icmp {tcp,udp}")
		}
		return "meta l4proto {tcp,udp}"
	case 16:
		if g.family == "inet" {
			return "meta nfproto " + map[bool]string{false: "ipv4", true: "ipv6"}[v6] // nft refuses others ahead of an address
		}
	case 17:
		if transport == "" && !g.oneIn(3) {
			return map[bool]string{false: "icmp type ", true: "icmpv6 type "}[v6] + g.op() + g.word("echo-request echo-reply {echo-request,echo-reply}")
		}
	case 18:
		if transport == "tcp" {
			return "tcp flags " + pick(g.dice, []string{"syn", "& (fin|syn|rst|ack) == syn", "& (syn|ack) != syn", "!= ack", "{ syn, ack }"})
		}
	case 19:
		if transport != "" {
			return "th dport " + g.op() + "@d0"
		}
	case 20:
		if g.oneIn(2) {
			return g.word("limit") + " rate " + g.word("1000/second 1/hour")
		}
	}
	return ""
}

func (g *nftGenerator) link() string {
	names := "\"left0\" \"right0\" \"lo\" \"l*\" \"right*\" \"eth0\" {\"left0\",\"lo\"}"
	in, out := "iifname "+g.op()+g.word(names), "oifname "+g.op()+g.word(names)
	switch g.hook {
	case "output", "postrouting":
		return out
	case "forward":
		return pick(g.dice, []string{in, out, "iifname \"left0\" oifname \"right0\"", "iif \"left0\"", "oif != \"right0\""})
	case "":
		return pick(g.dice, []string{in, out})
	}
	return in
}

func (g *nftGenerator) fib() string {
	switch g.hook {
	case "prerouting", "input":
		return "fib " + pick(g.dice, []string{"daddr", "saddr", "daddr . iif"}) + g.fibType()
	case "output", "postrouting":
		return "fib " + g.word("daddr saddr") + g.fibType()
	}
	return "fib daddr" + g.fibType()
}

func (g *nftGenerator) fibType() string {
	return " type " + g.op() + g.word("local unicast {local,broadcast}")
}

// statement is what the rule does in the end.
func (g *nftGenerator) statement(v6 bool, transport string) string {
	if g.kind == "nat" && g.oneIn(2) {
		return g.nat(v6, transport)
	}
	switch g.IntN(18) {
	case 0, 1, 2, 3:
		if len(g.later) > 0 {
			return g.word("jump jump goto") + " " + pick(g.dice, g.later)
		}
	case 4:
		return "accept"
	case 5:
		return "return"
	case 6, 7, 8:
		return "meta mark set " + pick(g.dice, []string{
			g.number(), "meta mark | 0x10", "meta mark & 0xff ^ 0x210", "ct mark", "ct mark & 0xff", "numgen random mod 2 offset 4",
		})
	case 9, 10:
		return "ct mark set " + pick(g.dice, []string{g.number(), "meta mark", "ct mark | 0x4000", "meta mark & 0xf0"})
	case 11:
		return g.vmap(v6, transport)
	case 12:
		if g.hook == "prerouting" || g.hook == "output" {
			return "notrack"
		}
	case 13:
		if g.kind == "filter" && (g.hook == "input" || g.hook == "forward" || g.hook == "output") {
			return g.reject(v6, transport)
		}
		return "drop"
	case 14:
		if g.kind == "filter" && g.hook == "prerouting" && transport == "tcp" {
			return g.tproxy(v6) + pick(g.dice, []string{"", " meta mark set 0x100", " accept", " meta mark set meta mark | 0x100 accept"})
		}
	case 16:
		if transport != "" {
			return g.word("add delete update") + " @d0 { th dport }"
		}
	case 17:
		if g.early && g.zones {
			return "ct zone set 5"
		}
	}
	return "continue"
}

func (g *nftGenerator) tproxy(v6 bool) string {
	family := ""
	if g.family == "inet" {
		family = ipOf(v6) + " "
	}
	return "meta l4proto tcp tproxy " + family + "to :" + g.word("15001 15002")
}

func (g *nftGenerator) reject(v6 bool, transport string) string {
	switch {
	case transport == "tcp" && g.oneIn(2):
		return "meta l4proto tcp reject with tcp reset"
	case g.oneIn(3) && v6:
		return "reject with icmpv6 type " + g.word("no-route admin-prohibited")
	case g.oneIn(3):
		return "reject with icmp type " + g.word("host-unreachable admin-prohibited")
	}
	return g.word("reject drop drop")
}

func (g *nftGenerator) nat(v6 bool, transport string) string {
	ports := transport != ""
	family := ""
	if g.family == "inet" {
		family = ipOf(v6) + " "
	}
	prefix := ""
	if ports {
		prefix = "meta l4proto " + transport + " "
	}
	a := g.addr(v6)
	switch g.hook {
	case "prerouting", "output":
		switch {
		case g.oneIn(3) && ports:
			return prefix + "redirect to :" + g.word("15001 80")
		case g.oneIn(4) && ports:
			return prefix + "dnat " + family + "to " + ipOf(v6) + " daddr map { " + g.addr(v6) + " : " + a + " }"
		case g.oneIn(4):
			return "dnat " + family + "to numgen random mod 2 map { 0 : " + a + ", 1 : " + g.addr(v6) + " }"
		case ports && g.oneIn(2):
			return prefix + "dnat " + family + "to " + netip.AddrPortFrom(netip.MustParseAddr(a), 8080).String()
		}
		return "dnat " + family + "to " + a
	case "postrouting":
		if g.oneIn(2) {
			return "masquerade"
		}
	}
	return "snat " + family + "to " + pick(g.dice, append(slices.Clone(remotes[v6]), owns[v6][:2]...)).String()
}
