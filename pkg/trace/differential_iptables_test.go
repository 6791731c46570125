package trace_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// dice makes random rulesets and packets.
type dice struct{ *rand.Rand }

func (d dice) oneIn(n int) bool { return d.IntN(n) == 0 }

func pick[T any](d dice, all []T) T { return all[d.IntN(len(all))] }

func (d dice) word(all string) string { return pick(d, strings.Fields(all)) }

// not negates a match now and then.
func (d dice) not(match string) string {
	// iptables-nft can't negate ::/0, and iptables-legacy-save leaves out the negation of the interface +.
	if d.oneIn(4) && !strings.HasSuffix(match, "/0") && !strings.HasSuffix(match, " +") {
		return "! " + match
	}
	return match
}

// iptables makes a ruleset in the language of iptables-restore.
type iptables struct {
	dice
	v6    bool
	zones bool // raw puts connections into zones; it does not look at connections then, which are the rule's own template
	table string
	// reach are the hooks from which each of the table's chains is reached.
	reach map[string][]string
	order []string
}

var iptablesHooks = []struct {
	table string
	hooks []string
}{
	{"raw", []string{"PREROUTING", "OUTPUT"}},
	{"mangle", []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}},
	{"nat", []string{"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"}},
	{"filter", []string{"INPUT", "FORWARD", "OUTPUT"}},
	{"security", []string{"INPUT", "FORWARD", "OUTPUT"}},
}

// usual are rules as meshes and firewalls have them.
var usual = map[string][]string{
	"raw PREROUTING":    {"-p udp -j NOTRACK"},
	"raw OUTPUT":        {"-p udp -j NOTRACK"},
	"nat OUTPUT":        {"-p tcp -j REDIRECT --to-ports 15001", "-p udp -j DNAT --to-destination :8080"},
	"nat PREROUTING":    {"-p tcp -j REDIRECT --to-ports 15002", "-p tcp -j DNAT --to-destination :15001"},
	"nat POSTROUTING":   {"-j MASQUERADE", "-m mark --mark 0x4000/0x4000 -j MASQUERADE"},
	"mangle PREROUTING": {"-p tcp -j TPROXY --on-port 15001 --tproxy-mark 0x100/0x100", "-j CONNMARK --set-mark 0x4031"},
	"mangle FORWARD":    {"-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0x11", "-j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xff"},
	"mangle INPUT":      {"-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0x11", "-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xf"},
	"mangle OUTPUT": {
		"-j MARK --set-xmark 0x200/0x200", "-m owner --uid-owner 1337 -j MARK --set-xmark 0x100/0x100", "-j CONNMARK --save-mark",
	},
	"filter INPUT":   {"-m conntrack --ctstate UNTRACKED -j RETURN", "-m conntrack --ctstate INVALID -j DROP"},
	"filter FORWARD": {"-m conntrack --ctstate UNTRACKED -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"},
	"filter OUTPUT":  {"-m conntrack --ctstate UNTRACKED -j ACCEPT", "-m conntrack --ctstate INVALID -j RETURN"},
}

func (d dice) iptables(v6 bool) string {
	var b strings.Builder
	zones := d.oneIn(2)
	for _, t := range iptablesHooks {
		g := iptables{dice: d, v6: v6, zones: zones, table: t.table, reach: map[string][]string{}}
		fmt.Fprintf(&b, "*%s\n", t.table)
		for _, h := range t.hooks {
			policy := "ACCEPT"
			if t.table != "nat" && d.oneIn(30) {
				policy = "DROP"
			}
			g.chain(h, []string{h})
			fmt.Fprintf(&b, ":%s %s [0:0]\n", h, policy)
		}
		for _, name := range []string{"A", "B", "C"} {
			var hooks []string
			for len(hooks) == 0 {
				hooks = slices.DeleteFunc(slices.Clone(t.hooks), func(string) bool { return d.oneIn(2) })
			}
			g.chain(name, hooks)
			fmt.Fprintf(&b, ":%s - [0:0]\n", name)
		}
		for i, name := range g.order {
			if d.oneIn(8) || t.table == "security" && d.oneIn(2) {
				continue
			}
			for range d.IntN(5) {
				fmt.Fprintf(&b, "-A %s %s\n", name, g.rule(name, g.order[max(i+1, len(t.hooks)):]))
			}
			if rules := usual[t.table+" "+name]; rules != nil && d.oneIn(3) {
				fmt.Fprintf(&b, "-A %s %s\n", name, pick(d, rules))
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

func (g *iptables) chain(name string, hooks []string) {
	g.reach[name] = hooks
	g.order = append(g.order, name)
}

// within reports whether a chain is reached from these hooks only.
func (g *iptables) within(chain, hooks string) bool {
	all := strings.Fields(hooks)
	return !slices.ContainsFunc(g.reach[chain], func(h string) bool { return !slices.Contains(all, h) })
}

// rule may jump to one of the later chains.
func (g *iptables) rule(chain string, later []string) string {
	later = slices.DeleteFunc(slices.Clone(later), func(to string) bool { return !g.within(chain, strings.Join(g.reach[to], " ")) })
	protocol := ""
	var words []string
	if g.oneIn(2) {
		protocol = g.word("tcp tcp tcp udp udp icmp")
		words = append(words, g.protocol(&protocol))
	}
	for range g.IntN(3) {
		match := g.match(chain)
		if !slices.ContainsFunc(words, func(w string) bool { return option(w) == option(match) }) {
			words = append(words, match)
		}
	}
	target := g.target(chain, protocol, later)
	return strings.Join(slices.DeleteFunc(append(words, target), func(w string) bool { return w == "" }), " ")
}

// option is what a match begins with: iptables takes -i and the like only once.
func option(match string) string {
	if strings.HasPrefix(match, "-m ") {
		return match
	}
	return strings.TrimPrefix(match, "! ")[:min(2, len(match))]
}

// protocol is the match on a protocol and what belongs to it. It clears the name of a protocol that is excluded.
func (g *iptables) protocol(name *string) string {
	p := *name
	if g.oneIn(8) {
		*name = ""
		return "! -p " + g.icmp(p)
	}
	words := []string{"-p " + g.icmp(p)}
	switch {
	case p == "icmp" && g.v6:
		if g.oneIn(2) {
			words = append(words, "-m icmp6", g.not("--icmpv6-type "+g.word("128 echo-request 129 1 1/0 135")))
		}
	case p == "icmp":
		if g.oneIn(2) {
			words = append(words, "-m icmp", g.not("--icmp-type "+g.word("8 8/0 echo-request 0 3 3/1 any")))
		}
	default:
		words = append(words, g.ports(p)...)
	}
	return strings.Join(words, " ")
}

func (g *iptables) icmp(p string) string {
	if p == "icmp" && g.v6 {
		return "ipv6-icmp"
	}
	return p
}

const (
	somePorts  = "53 80 443 7000 8080 15001"
	portRanges = "80:443 0:1023 7000: :8080 1024:65535 20000:25000 22000:40000"
)

func (g *iptables) ports(protocol string) []string {
	if g.oneIn(3) {
		var list []string
		for range 1 + g.IntN(4) {
			list = append(list, g.word(somePorts+" 80:443 7000:8080 20000:24000"))
		}
		return []string{"-m multiport", g.not(g.word("--dports --sports --ports") + " " + strings.Join(list, ","))}
	}
	var words []string
	if g.oneIn(2) {
		words = append(words, g.not("--dport "+g.word(somePorts+" "+portRanges)))
	}
	if g.oneIn(6) {
		words = append(words, g.not("--sport "+g.word(portRanges)))
	}
	if protocol == "tcp" && g.oneIn(5) {
		words = append(words, g.not(pick(g.dice, []string{
			"--syn", "--tcp-flags SYN,ACK SYN", "--tcp-flags ALL SYN", "--tcp-flags FIN,RST NONE", "--tcp-flags ACK ACK",
		})))
	}
	if len(words) > 0 {
		words = append([]string{"-m " + protocol}, words...)
	}
	return words
}

// prefix is a network of one of the addresses that packets have.
func (d dice) prefix(v6 bool) string {
	a := d.addr(v6)
	bits := a.BitLen()
	if d.oneIn(2) {
		bits = pick(d, map[bool][]int{false: {0, 8, 16, 24, 31, 32, 13, 17}, true: {0, 16, 32, 64, 127, 128, 61}}[v6])
	}
	return netip.PrefixFrom(a, bits).Masked().String()
}

func (d dice) addr(v6 bool) netip.Addr {
	return pick(d, append(slices.Clone(remotes[v6]), owns[v6]...))
}

func (d dice) mark() string {
	value := d.word("0x1 0x10 0x100 0x200 0x4000 0x0 0x11 0xffffffff")
	if d.oneIn(2) {
		return value
	}
	return value + "/" + d.word("0x1 0x10 0x11 0xff 0x4000 0xffff0000 0xffffffff 0x0")
}

// match is a match of iptables that the chain may have.
func (g *iptables) match(chain string) string {
	switch g.IntN(19) {
	case 0, 1:
		return g.not("-s " + g.prefix(g.v6))
	case 2, 3:
		return g.not("-d " + g.prefix(g.v6))
	case 4, 5:
		if len(g.reach[chain]) > 1 || g.within(chain, "PREROUTING INPUT FORWARD") {
			return g.not("-i " + g.word("left0 right0 lo l+ left+ eth0 +"))
		}
		return g.not("-o " + g.word("left0 right0 lo r+ right+ eth0 +"))
	case 6:
		if g.within(chain, "FORWARD OUTPUT POSTROUTING") {
			return g.not("-o " + g.word("left0 right0 lo r+ right+ eth0"))
		}
	case 7, 8:
		return "-m mark " + g.not("--mark "+g.mark())
	case 9:
		if g.table != "raw" || !g.zones {
			return "-m connmark " + g.not("--mark "+g.mark())
		}
	case 10, 11:
		states := "NEW ESTABLISHED RELATED,ESTABLISHED INVALID UNTRACKED NEW,UNTRACKED DNAT SNAT NEW,DNAT INVALID,SNAT"
		return "-m conntrack " + g.not("--ctstate "+g.word(states))
	case 12:
		if g.table != "raw" || !g.zones {
			return g.conntrack()
		}
	case 13:
		return g.addrtype(chain)
	case 14:
		if g.within(chain, "OUTPUT POSTROUTING") {
			return "-m owner " + g.not(g.word("--uid-owner --gid-owner")+" "+g.word("0 1000 1337 1000-1337 0-999"))
		}
		return "-m state " + g.not("--state "+g.word("NEW ESTABLISHED INVALID UNTRACKED"))
	case 15:
		lo, hi := g.addr(g.v6), g.addr(g.v6)
		if hi.Less(lo) {
			lo, hi = hi, lo
		}
		return "-m iprange " + g.not(g.word("--src-range --dst-range")+" "+lo.String()+"-"+hi.String())
	case 16:
		return "-m statistic " + pick(g.dice, []string{
			"--mode random " + g.not("--probability "+g.word("0.5 0.3 1 0")), "--mode random --probability 1.0",
			"--mode nth --every 3 --packet 0", "--mode nth ! --every 2 --packet 1", "--mode nth --every 1 --packet 0",
		})
	case 18:
		if g.oneIn(4) {
			return "-m limit --limit 1000/sec"
		}
	case 17:
		return `-m comment --comment "what it is for"`
	}
	return ""
}

func (g *iptables) conntrack() string {
	options := []string{
		"--ctproto " + g.word("6 17"), "--ctorigdst " + g.prefix(g.v6), "--ctorigsrc " + g.prefix(g.v6),
		"--ctstatus " + g.word("SEEN_REPLY CONFIRMED NONE"), "--ctorigdstport " + g.word("80 443 80:8080"), "--ctreplsrc " + g.prefix(g.v6),
	}
	if g.oneIn(4) {
		return "-m conntrack --ctdir " + g.word("ORIGINAL REPLY")
	}
	return "-m conntrack " + g.not(pick(g.dice, options))
}

func (g *iptables) addrtype(chain string) string {
	kinds := "LOCAL LOCAL UNICAST LOCAL,MULTICAST MULTICAST"
	if !g.v6 {
		kinds += " LOCAL,BROADCAST"
	}
	words := "-m addrtype " + g.not(g.word("--dst-type --src-type")+" "+g.word(kinds))
	switch {
	case g.oneIn(4) && g.within(chain, "PREROUTING INPUT FORWARD"):
		words += " --limit-iface-in"
	case g.oneIn(4) && g.within(chain, "FORWARD OUTPUT POSTROUTING"):
		words += " --limit-iface-out"
	}
	return words
}

// target is what the rule does.
func (g *iptables) target(chain, protocol string, later []string) string {
	switch g.IntN(10) {
	case 0, 1, 2:
		if len(later) > 0 {
			return g.word("-j -j -g") + " " + pick(g.dice, later)
		}
	case 3:
		return "-j ACCEPT"
	case 4:
		return "-j RETURN"
	case 5:
		return pick(g.dice, []string{"", "-j LOG --log-prefix seen"})
	}
	return g.special(chain, protocol)
}

// special is a target of the table at hand.
func (g *iptables) special(chain, protocol string) string {
	ports := protocol == "tcp" || protocol == "udp"
	switch g.table {
	case "raw":
		if g.zones && g.oneIn(2) {
			return "-j CT --zone 5"
		}
		return pick(g.dice, []string{"-j CT --notrack", "-j NOTRACK", "-j DROP", "-j ACCEPT"})
	case "mangle":
		if protocol == "tcp" && g.within(chain, "PREROUTING") && g.oneIn(2) {
			mark := pick(g.dice, []string{" --tproxy-mark 0x100/0x100", " --tproxy-mark 0x100", ""})
			return "-j TPROXY --on-port " + g.word("15001 15001 15002") + mark
		}
		return pick(g.dice, []string{
			"-j MARK --set-xmark " + g.mark(), "-j MARK --set-mark " + g.mark(), "-j MARK --or-mark 0x100", "-j MARK --and-mark 0xff",
			"-j MARK --xor-mark 0x210", "-j CONNMARK --save-mark", "-j CONNMARK --restore-mark", "-j CONNMARK --set-xmark " + g.mark(),
			"-j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff",
			"-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0x11", "-j DROP",
		})
	case "nat":
		return g.nat(chain, ports)
	}
	if g.oneIn(2) && g.within(chain, "INPUT FORWARD OUTPUT") && g.table == "filter" {
		if protocol == "tcp" && g.oneIn(2) {
			return "-j REJECT --reject-with tcp-reset"
		}
		return "-j REJECT"
	}
	return "-j DROP"
}

func (g *iptables) nat(chain string, ports bool) string {
	if g.within(chain, "PREROUTING OUTPUT") {
		to := g.endpoint(ports)
		switch {
		case g.oneIn(2):
			return "-j DNAT --to-destination " + to
		case g.oneIn(4):
			nets := map[bool]string{false: "10.1.0.0/24 10.2.0.2/31", true: "fd01::/64 fd02::2/127"}
			return "-j NETMAP --to " + g.word(nets[g.v6])
		case ports:
			return "-j REDIRECT --to-ports " + g.word("15001 15001 80")
		}
		return "-j REDIRECT"
	}
	if g.within(chain, "POSTROUTING") && g.oneIn(2) {
		return "-j MASQUERADE"
	}
	if g.within(chain, "POSTROUTING INPUT") {
		return "-j SNAT --to-source " + pick(g.dice, slices.Concat(remotes[g.v6], owns[g.v6][:2])).String()
	}
	return "-j RETURN"
}

// endpoint is what DNAT may lead to.
func (g *iptables) endpoint(ports bool) string {
	a := g.addr(g.v6)
	switch {
	case ports && g.oneIn(2):
		return netip.AddrPortFrom(a, pick(g.dice, []uint16{80, 8080, 15001})).String()
	case ports && g.oneIn(5):
		return ":8080"
	}
	return a.String()
}
