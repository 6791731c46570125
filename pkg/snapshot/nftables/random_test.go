package nftables_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// part is a match or a statement that fits into rules of this family and transport protocol; "" fits into all.
type part struct{ family, protocol, words string }

// Each # is a random number up to 255.
var matches = []part{
	{"", "", "meta mark #"}, {"", "", "meta mark & 0x# == 0x1"}, {"", "", "meta mark { #, 3#, 4# }"}, {"", "", "meta mark #-300"},
	{"", "", "meta mark != 0x#"}, {"", "", "meta mark & 0xff00 != 0x#00"}, {"", "", "ct mark & 0x# != 0"}, {"", "", "ct state new"},
	{"", "", "ct state established,related"}, {"", "", "ct state != invalid"}, {"", "", "ct state { new, untracked }"}, {"", "", "ct status dnat"},
	{"", "", `iifname "eth#"`}, {"", "", `iifname "eth*"`}, {"", "", `oifname != { "lo", "veth#" }`}, {"", "", "iif lo"}, {"", "", "meta skuid #"},
	{"", "", "meta skgid 5-#00"}, {"", "", "fib daddr type local"}, {"", "", "numgen random mod 1# < 3"}, {"", "", "meta length > #"},
	{"", "", "meta pkttype host"}, {"", "", "limit rate #1/second"}, {"", "", "ct direction original"}, {"", "", "meta cpu 1-#9"},
	{"", "", "socket transparent 1"}, {"", "", "ct original packets > #"}, {"", "", "quota over #0 kbytes"}, {"", "", "ct count over 1#"},
	{"ip", "", "ip saddr 10.0.0.#"}, {"ip", "", "ip daddr 10.#.0.0/16"}, {"ip", "", "ip daddr != { 10.0.#.0/24, 192.168.0.0/16 }"},
	{"ip", "", "ip saddr 10.0.0.1-10.0.1.#"}, {"ip", "", "ip dscp cs1"}, {"ip", "", "ip dscp { cs1, 0x3f }"}, {"ip", "", "ip ttl < #"},
	{"ip", "", "ip saddr 10.0.0.# ip daddr 10.0.1.#"}, {"ip", "", "ip saddr . ip daddr { 10.0.0.# . 10.0.0.1, 10.0.0.2 . 10.0.0.1 }"},
	{"ip", "", "ip saddr & 255.0.255.0 == 10.0.#.0"}, {"ip", "", "ct original ip daddr 10.96.0.#"}, {"ip", "", "fib saddr . iif oif missing"},
	{"ip", "", "ip saddr vmap { 10.0.0.# : drop, 10.1.0.0 : continue }"}, {"ip", "", "ip saddr . meta mark { 10.0.0.# . 0x#, 10.2.0.1 . 7 }"},
	{"ip", "", "jhash ip saddr mod 1# 5"}, {"ip", "", "ip frag-off & 0x1fff != 0"}, {"ip", "", "ip length #-1500"}, {"ip", "", "ip id #"},
	{"ip6", "", "ip6 saddr 2001:db8::#"}, {"ip6", "", "ip6 daddr 2001:db8:#::/48"}, {"ip6", "", "ip6 daddr { fe80::/10, ::# }"},
	{"ip6", "", "ip6 hoplimit #"}, {"ip6", "", "ip6 dscp af21"}, {"ip6", "", "ip6 flowlabel #"}, {"ip6", "", "exthdr frag exists"},
	{"", "tcp", "tcp dport #"}, {"", "tcp", "tcp sport 1024-65535 tcp dport { #, 5#0 }"}, {"", "tcp", "tcp flags syn"},
	{"", "tcp", "tcp flags & (fin|syn|rst|ack) == syn"}, {"", "tcp", "tcp flags & (syn|ack) != syn|ack"}, {"", "tcp", "tcp dport != 100-2#0"},
	{"", "tcp", "tcp dport vmap { # : continue, 3000-4000 : jump other }"}, {"", "tcp", "tcp option maxseg size < #0"}, {"", "tcp", "tcp window #"},
	{"", "tcp", "meta l4proto tcp"}, {"", "udp", "udp dport #"}, {"", "udp", "udp sport { 53, 1#0-2#0 }"}, {"", "udp", "udp length > #"},
	{"", "udp", "meta l4proto udp"}, {"", "udp", "meta l4proto . th dport { udp . 53, tcp . # }"}, {"ip", "tcp", "ip daddr . tcp dport { 10.96.0.1 . 443, 10.0.0.# . 80 }"},
	{"ip", "tcp", "ip daddr . meta l4proto . th dport vmap { 10.96.0.# . tcp . 443 : goto other, 10.96.0.0 . udp . 53 : drop }"},
	{"ip", "icmp", "icmp type echo-request"}, {"ip", "icmp", "icmp type { echo-reply, redirect }"}, {"ip", "icmp", "icmp id #"},
	{"ip6", "icmpv6", "icmpv6 type nd-neighbor-solicit"}, {"ip6", "icmpv6", "icmpv6 code #"}, {"ip6", "icmpv6", "icmpv6 type packet-too-big icmpv6 mtu 1#"},
	{"", "", "@nh,64,8 #"}, {"", "tcp", "@th,16,16 #"}, {"", "", "counter"},
}

var verdicts = []part{
	{"", "", "accept"}, {"", "", "drop"}, {"", "", "return"}, {"", "", "jump other"}, {"", "", "goto other"}, {"", "", "meta mark set 0x#"},
	{"", "", "meta mark set meta mark | 0x#"}, {"", "", "meta mark set meta mark & 0xffff00ff ^ 0x#00"}, {"", "", "ct mark set meta mark"},
	{"", "", "meta mark set ct mark & 0x# accept"}, {"", "", `log prefix "rule #: " accept`}, {"", "", "counter drop"}, {"", "", "reject"},
	{"", "", "meta mark set numgen inc mod 2 map { 0 : #, 1 : 0x# }"}, {"", "tcp", "reject with tcp reset"}, {"ip", "", "reject with icmp type host-unreachable"},
	{"ip", "", "ip dscp set cs1"}, {"ip", "", "ip ttl set #"}, {"ip", "", "ip daddr set 10.0.0.#"}, {"", "tcp", "tcp dport set #"}, {"", "", "notrack"},
	{"ip", "", "add @seen { ip saddr }"}, {"ip", "", "update @seen { ip daddr timeout #s }"}, {"", "tcp", "tcp option maxseg size set 1#"},
	{"ip6", "", "ip6 hoplimit set #"}, {"", "", `accept comment "number #"`}, {"", "", "continue"}, {"", "tcp", "meta mark set tcp dport map { # : 1, 443 : 0x#0 }"},
}

func pick(r *rand.Rand, from []part, family, protocol string) string {
	for {
		p := from[r.IntN(len(from))]
		if p.family != "" && p.family != family || p.protocol != "" && p.protocol != protocol {
			continue
		}
		words := p.words
		for strings.Contains(words, "#") {
			words = strings.Replace(words, "#", strconv.Itoa(1+r.IntN(9)), 1)
		}
		return words
	}
}

func randomRule(r *rand.Rand, family string) string {
	if family == "inet" {
		family = []string{"ip", "ip6"}[r.IntN(2)]
	}
	protocol := []string{"tcp", "udp", map[string]string{"ip": "icmp", "ip6": "icmpv6"}[family]}[r.IntN(3)]
	var words []string
	for range r.IntN(4) {
		words = append(words, pick(r, matches, family, protocol))
	}
	return strings.Join(append(words, pick(r, verdicts, family, protocol)), " ")
}

const (
	rulesets = 20 // FUZZ_RULESETS says how many instead
	length   = 60
)

func TestReadSaysOfRandomRulesWhatNftSays(t *testing.T) {
	n := rulesets
	if more, err := strconv.Atoi(os.Getenv("FUZZ_RULESETS")); err == nil {
		n = more
	}
	for seed := range n {
		t.Run(strconv.Itoa(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(seed), 0))
			family := []string{"ip", "ip6", "inet"}[seed%3]
			ns := start(t, "random")
			run(t, ns, fmt.Sprintf("table %s chance {\nset seen { type ipv4_addr; size 99; flags dynamic,timeout; }\nchain other {\n}\nchain rules {\n}\n}\n", family), "nft", "-f", "-")
			accepted := 0
			for range length { // nft refuses rules whose parts contradict each other
				if _, err := tryRun(ns, fmt.Sprintf("add rule %s chance rules %s\n", family, randomRule(r, family)), "nft", "-f", "-"); err == nil {
					accepted++
				}
			}
			if accepted < length/3 {
				t.Errorf("nft takes %d of %d rules", accepted, length)
			}
			judge(t, ns)
		})
	}
}
