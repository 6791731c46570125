package xtables

import (
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// nativeRules are rules of nft's, and what they are in iptables' words. Newer versions of iptables make the first ones.
var nativeRules = []struct {
	family    rules.Family
	nft, want string
}{
	{0, "counter packets 3 bytes 180 accept", "[3:180] -A INPUT -j ACCEPT"},
	{0, "meta mark 5 accept", "-m mark --mark 0x5 -j ACCEPT"},
	{0, "meta mark != 5 drop", "-m mark ! --mark 0x5 -j DROP"},
	{0, "meta mark & 0xff == 1 return", "-m mark --mark 0x1/0xff -j RETURN"},
	{0, "meta pkttype broadcast accept", "-m pkttype --pkt-type broadcast -j ACCEPT"},
	{0, "meta pkttype != multicast accept", "-m pkttype ! --pkt-type multicast -j ACCEPT"},
	{0, "tcp flags & (syn|ack) == syn accept", "-p tcp -m tcp --tcp-flags SYN,ACK SYN -j ACCEPT"},
	{0, "tcp flags & (fin|syn) != 0 accept", "-p tcp -m tcp ! --tcp-flags FIN,SYN NONE -j ACCEPT"},
	{0, "tcp dport 80 accept", "-p tcp -m tcp --dport 80 -j ACCEPT"},
	{0, "tcp sport 1-1023 tcp dport != 80 accept", "-p tcp -m tcp --sport 1:1023 ! --dport 80 -j ACCEPT"},
	{0, "tcp dport != 80-90 accept", "-p tcp -m tcp ! --dport 80:90 -j ACCEPT"},
	{0, "udp dport >= 1024 accept", "-p udp -m udp --dport 1024:65535 -j ACCEPT"},
	{0, "udp dport > 1024 accept", "-p udp -m udp --dport 1025:65535 -j ACCEPT"},
	{0, "udp sport < 1024 accept", "-p udp -m udp --sport 0:1023 -j ACCEPT"},
	{0, "udp sport <= 1024 accept", "-p udp -m udp --sport 0:1024 -j ACCEPT"},
	{0, "meta l4proto != 6 accept", "! -p tcp -j ACCEPT"},
	{0, "limit rate 5/second burst 7 packets accept", "-m limit --limit 5/sec --limit-burst 7 -j ACCEPT"},
	{0, `log group 3 prefix "a b" snaplen 100 queue-threshold 9`, `-j NFLOG --nflog-prefix "a b" --nflog-group 3 --nflog-size 100 --nflog-threshold 9`},
	{0, `iifname "eth*" accept`, "-i eth+ -j ACCEPT"},
	{0, `iifname != "lo" accept`, "! -i lo -j ACCEPT"},
	{0, `oifname "INVAL/D" accept`, "! -o + -j ACCEPT"},
	{0, "meta mark set 5", "-j MARK --set-xmark 0x5/0xffffffff"},
	{0, "meta nftrace set 1", "-j TRACE"},
	{0, "jump other", "-j other"},
	{0, "goto other", "-g other"},
	{0, `accept comment "it's mine"`, `-m comment --comment "it\'s mine" -j ACCEPT`},
	{rules.IPv4, "ip saddr 10.0.0.0/8 ip daddr != 10.1.2.3 ip protocol tcp accept", "-s 10.0.0.0/8 ! -d 10.1.2.3/32 -p tcp -j ACCEPT"},
	{rules.IPv4, "ip saddr 10.0.0.0/9 accept", "-s 10.0.0.0/9 -j ACCEPT"},
	{rules.IPv4, "ip saddr & 255.0.255.0 == 10.0.3.0 accept", "-s 10.0.3.0/255.0.255.0 -j ACCEPT"},
	{rules.IPv4, "ip ttl 64 accept", "-m ttl --ttl-eq 64 -j ACCEPT"},
	{rules.IPv4, "ip ttl <= 5 accept", "-m ttl --ttl-lt 6 -j ACCEPT"},
	{rules.IPv4, "ip ttl >= 5 accept", "-m ttl --ttl-gt 4 -j ACCEPT"},
	{rules.IPv4, "icmp type 8 accept", "-p icmp -m icmp --icmp-type 8 -j ACCEPT"},
	{rules.IPv4, "icmp type 3 icmp code 4 accept", "-p icmp -m icmp --icmp-type 3/4 -j ACCEPT"},
	{rules.IPv4, "icmp type != 8 accept", "-p icmp -m icmp ! --icmp-type 8 -j ACCEPT"},
	{rules.IPv4, "ip frag-off & 0x1fff != 0 accept", "-f -j ACCEPT"},
	{rules.IPv4, "ip frag-off & 0x1fff == 0 accept", "! -f -j ACCEPT"},
	{rules.IPv6, "ip6 saddr 2001:db8::/32 ip6 daddr != ::1 ip6 nexthdr udp accept", "-s 2001:db8::/32 ! -d ::1/128 -p udp -j ACCEPT"},
	{rules.IPv6, "ip6 hoplimit != 1 accept", "-m hl ! --hl-eq 1 -j ACCEPT"},
	{rules.IPv6, "icmpv6 type 128 accept", "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT"},
}

// foreignRules are rules of nft's that iptables has no words for.
var foreignRules = []struct {
	family    rules.Family
	nft, want string
}{
	{0, "ct state established accept", "-m ct [unknown] -j ACCEPT"},
	{0, "ct state established ct mark 1 tcp dport 80 accept", "-p tcp -m ct [unknown] -m tcp --dport 80 -j ACCEPT"},
	{0, "fib daddr type local accept", "-m fib [unknown] -j ACCEPT"},
	{0, "tcp dport { 80, 443 } accept", "-p tcp -m lookup [unknown] -j ACCEPT"},
	{0, "tcp dport vmap { 80 : accept, 443 : drop }", "-p tcp -j lookup [unknown]"},
	{0, "tcp dport 80 meta mark set tcp sport map { 1 : 2, 3 : 4 }", "-p tcp -m tcp --dport 80 -j meta [unknown]"},
	{0, "numgen random mod 2 0 accept", "-m numgen [unknown] -j ACCEPT"},
	{0, "meta skuid 5 accept", "-m meta [unknown] -j ACCEPT"},
	{0, "meta length 5 accept", "-m meta [unknown] -j ACCEPT"},
	{0, "meta mark | 5 == 7 accept", "-m bitwise [unknown] -j ACCEPT"},
	{0, "meta mark > 5 accept", "-m byteorder [unknown] -j ACCEPT"},
	{0, "meta mark set mark | 5 accept", "-j meta [unknown]"},
	{0, "meta mark set 5 accept", "-j MARK [unknown]"},
	{0, "meta priority set 1:5", "-j meta [unknown]"},
	{0, "ct mark set 5 accept", "-j ct [unknown]"},
	{0, `tcp sport 7 meta mark set 5 iifname "lo"`, "-p tcp -m tcp --sport 7 -j MARK [unknown]"},
	{0, "tcp sport 7 ct mark set 5 tcp dport { 80, 90 } accept", "-p tcp -m tcp --sport 7 -j ct [unknown]"},
	{0, "limit rate over 5/second accept", "-m limit [unknown] -j ACCEPT"},
	{0, "limit rate 5 kbytes/second accept", "-m limit [unknown] -j ACCEPT"},
	{0, "quota 5 mbytes accept", "-m quota [unknown] -j ACCEPT"},
	{0, `log prefix "x" drop`, "-j log [unknown]"},
	{0, "log group 5 drop", "-j NFLOG [unknown]"},
	{0, "reject", "-j reject [unknown]"},
	{0, "tcp dport 80 tcp dport != 90 accept", "-p tcp -m tcp --dport 80 -m payload [unknown] -j ACCEPT"},
	{0, "meta l4proto 6 meta l4proto 17 accept", "-p tcp -m meta [unknown] -j ACCEPT"},
	{0, "tcp dport != 80-90 tcp dport > 85 accept", "-p tcp -m tcp ! --dport 80:90 -m payload [unknown] -j ACCEPT"},
	{0, "th dport 80 accept", "-m payload [unknown] -j ACCEPT"},
	{0, "@th,0,4 3 accept", "-m payload [unknown] -j ACCEPT"},
	{0, "tcp sequence 7 accept", "-p tcp -m payload [unknown] -j ACCEPT"},
	{0, "tcp option maxseg size set 1400 accept", "-j exthdr [unknown]"},
	{0, "tcp option maxseg size 1400 accept", "-m exthdr [unknown] -j ACCEPT"},
	{0, `iifname "lo" iifname != "eth*" accept`, "-i lo -m meta [unknown] -j ACCEPT"},
	{0, "iif lo accept", "-m meta [unknown] -j ACCEPT"},
	{rules.IPv4, "ip saddr 1.1.1.1-1.1.1.9 accept", "-m payload [unknown] -j ACCEPT"},
	{rules.IPv4, "ip saddr 1.1.1.1 ip saddr != 2.2.2.2 accept", "-s 1.1.1.1/32 -m payload [unknown] -j ACCEPT"},
	{rules.IPv4, "ip saddr != 1.1.1.1-1.1.1.9 accept", "-m range [unknown] -j ACCEPT"},
	{rules.IPv4, "ip length 5 accept", "-m payload [unknown] -j ACCEPT"},
	{rules.IPv4, "ip ttl set 5", "-j payload [unknown]"},
	{rules.IPv4, "ip saddr . tcp dport { 1.1.1.1 . 80 } accept", "-p tcp -m lookup [unknown] -j ACCEPT"},
	{rules.IPv6, "ip6 saddr ::1-::9 accept", "-m payload [unknown] -j ACCEPT"},
}

// table is nft's name of a table of the family.
func table(f rules.Family, name string) string {
	if f == rules.IPv6 {
		return "ip6 " + name
	}
	return "ip " + name
}

// filter makes table filter as iptables does, with a chain of its own and with these rules of nft's in INPUT.
func filter(t *testing.T, ns *nettest.Namespace, f rules.Family, all ...string) {
	t.Helper()
	mustRun(t, ns, "table "+table(f, "filter")+" {\nchain other {}\nchain INPUT {\ntype filter hook input priority 0; policy accept;\n"+strings.Join(all, "\n")+"\n}\n}\n", "nft", "-f", "-")
}

// inputRules are the rules of INPUT in a text, without their counters if those are 0.
func inputRules(text string) (all []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSuffix(strings.TrimPrefix(line, "[0:0] "), "\n"); strings.Contains(line, "-A INPUT") {
			all = append(all, strings.TrimPrefix(line, "-A INPUT "))
		}
	}
	return all
}

func TestNativeRulesHaveIptablesWords(t *testing.T) {
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "nft")
	for _, f := range rules.Families {
		ns := nettest.StartNamespace(t, "native")
		var all, want []string
		for _, r := range nativeRules {
			if r.family == 0 || r.family == f {
				all, want = append(all, r.nft), append(want, r.want)
			}
		}
		filter(t, ns, f, all...)
		tables := save(t, ns, f)
		got := inputRules(tables.Nft)
		if !slices.Contains(tables.Names, "filter") || len(got) != len(want) {
			t.Fatalf("compatible with %v; got %d rules of %d: %s", tables.Names, len(got), len(want), tables.Nft)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s is %q, not %q", all[i], got[i], want[i])
			}
		}
	}
}

func TestWhatIptablesHasNoWordsForIsUnknown(t *testing.T) {
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "nft")
	for _, f := range rules.Families {
		for _, r := range foreignRules {
			if r.family != 0 && r.family != f {
				continue
			}
			t.Run(table(f, r.nft), func(t *testing.T) {
				t.Parallel()
				ns := nettest.StartNamespace(t, "foreign")
				filter(t, ns, f, r.nft)
				if tables := save(t, ns, f); tables.Nft != "" || slices.Contains(tables.Names, "filter") {
					t.Errorf("it is nft's own table, but there is %s", tables.Nft)
				}
				// A rule that only iptables makes.
				mustRun(t, ns, "", program(f, "nft", ""), "-A", "INPUT", "-m", "connmark", "--mark", "1")
				tables := save(t, ns, f)
				if got := inputRules(tables.Nft); !slices.Contains(tables.Names, "filter") || len(got) != 2 || got[0] != r.want || got[1] != "-m connmark --mark 0x1" {
					t.Errorf("got %q, not %q", got, r.want)
				}
			})
		}
	}
}
