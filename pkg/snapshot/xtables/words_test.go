package xtables

import (
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// words are options of a match or target, by which tests write rules.
type words struct {
	ahead   string         // of the match, in a rule
	chain   string         // of the tables nat, mangle or raw; "" for INPUT of filter
	options []string       // by themselves or, for IPv4 and IPv6,
	by      [2][]string    // more of them
	only    []rules.Family // that have the module
}

// of are the options for a family.
func (w words) of(f rules.Family) []string {
	if len(w.only) > 0 && w.only[0] != f {
		return nil
	}
	if f == rules.IPv6 {
		return slices.Concat(w.options, w.by[1])
	}
	return slices.Concat(w.options, w.by[0])
}

var (
	only4 = []rules.Family{rules.IPv4}
	only6 = []rules.Family{rules.IPv6}
)

// matchWords are the matches that there are words for.
var matchWords = map[string]words{
	"addrtype": {options: []string{
		"--src-type LOCAL", "! --src-type LOCAL --dst-type UNICAST,MULTICAST", "--dst-type LOCAL", "! --dst-type LOCAL", "--dst-type LOCAL --limit-iface-in",
	}, by: [2][]string{{"--dst-type BLACKHOLE,UNREACHABLE,PROHIBIT", "--src-type UNSPEC,UNICAST,LOCAL,BROADCAST,ANYCAST,MULTICAST,BLACKHOLE,UNREACHABLE,PROHIBIT,THROW,NAT,XRESOLVE"}, nil}},
	"ah":     {ahead: "-p ah", only: only4, options: []string{"--ahspi 5", "! --ahspi 1:500", ""}},
	"bpf":    {options: []string{`--bytecode "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0"`, `--bytecode "1,6 0 0 4294967295"`}},
	"cgroup": {chain: "mangle OUTPUT", options: []string{"--cgroup 7", "! --cgroup 4294967295"}},
	"comment": {options: []string{
		"--comment plain", `--comment "with words"`, `--comment "it's \"quoted\" \\ so"`, `--comment "a-b_c"`, `--comment "kube/svc:http [x]"`, `--comment "-j DROP"`,
		`--comment "ümlaut → ☃"`, `--comment "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123"`,
	}},
	"connbytes": {options: []string{
		"--connbytes 10 --connbytes-mode packets --connbytes-dir both", "--connbytes 10:1000 --connbytes-mode bytes --connbytes-dir original",
		"! --connbytes 10:1000 --connbytes-mode avgpkt --connbytes-dir reply", "--connbytes 0:18446744073709551614 --connbytes-mode packets --connbytes-dir both",
	}},
	"connlimit": {options: []string{"--connlimit-upto 0", "--connlimit-above 10", "--connlimit-above 3 --connlimit-mask 8", "--connlimit-upto 3 --connlimit-mask 24 --connlimit-daddr", "--connlimit-above 2 --connlimit-mask 0"}},
	"connmark":  {options: []string{"--mark 0x1", "! --mark 0x1", "--mark 0x4000/0x4000", "! --mark 0/0xff", "--mark 4294967295"}},
	"conntrack": {options: []string{
		"--ctstate NEW", "--ctstate RELATED,ESTABLISHED", "! --ctstate NEW", "--ctstate INVALID,UNTRACKED,SNAT,DNAT", "--ctstate NEW,SNAT", "--ctproto 6", "! --ctproto tcp",
		"--ctorigsrcport 80", "! --ctorigdstport 80:90", "--ctreplsrcport 0:65535", "--ctrepldstport 53", "--ctstatus ASSURED,CONFIRMED", "! --ctstatus EXPECTED,SEEN_REPLY", "--ctstatus NONE",
		"--ctexpire 10", "! --ctexpire 1:4294967295", "--ctdir ORIGINAL", "--ctdir REPLY", "--ctstate NEW --ctproto 17 --ctorigdstport 53 --ctdir ORIGINAL",
	}, by: [2][]string{
		{"--ctorigsrc 10.0.0.1", "! --ctorigdst 10.0.0.0/8", "--ctreplsrc 10.0.0.0/255.0.255.0", "--ctrepldst 0.0.0.0/0"},
		{"--ctorigsrc 2001:db8::1", "! --ctorigdst 2001:db8::/32", "--ctreplsrc ::/0", "--ctrepldst ::1.2.3.4/120"},
	}},
	"cpu":  {options: []string{"--cpu 0", "! --cpu 1"}},
	"dscp": {options: []string{"--dscp 0x0", "--dscp 63", "! --dscp-class EF"}},
	"esp":  {ahead: "-p esp", options: []string{"--espspi 500", "! --espspi 0:500", ""}},
	"hashlimit": {options: []string{
		"--hashlimit-above 1/sec --hashlimit-burst 5 --hashlimit-mode srcip,srcport,dstip,dstport --hashlimit-name a1",
		"--hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-name a2", "--hashlimit-upto 7/min --hashlimit-burst 8 --hashlimit-mode dstip --hashlimit-name a3",
		"--hashlimit-upto 20/hour --hashlimit-mode srcip --hashlimit-name a4 --hashlimit-htable-size 99 --hashlimit-htable-max 500 --hashlimit-htable-gcinterval 60000 --hashlimit-htable-expire 2000",
		"--hashlimit-above 5/day --hashlimit-mode srcip --hashlimit-name a5 --hashlimit-srcmask 16", "--hashlimit-above 512kb/s --hashlimit-mode dstip --hashlimit-name a6 --hashlimit-dstmask 8",
		"--hashlimit-upto 1mb/s --hashlimit-burst 1mb --hashlimit-name a7", "--hashlimit-upto 100b/s --hashlimit-mode srcport --hashlimit-name a8",
		"--hashlimit-above 100kb/s --hashlimit-burst 3mb --hashlimit-mode srcip --hashlimit-name a9",
		"--hashlimit-upto 30/sec --hashlimit-name b1 --hashlimit-rate-match --hashlimit-rate-interval 7", "--hashlimit-upto 30/sec --hashlimit-name b2 --hashlimit-rate-match",
	}},
	"helper":  {options: []string{"--helper ftp", "! --helper sip-5060", `--helper "a b"`}},
	"hl":      {only: only6, options: []string{"--hl-eq 64", "! --hl-eq 1", "--hl-lt 10", "--hl-gt 255"}},
	"icmp":    {ahead: "-p icmp", only: only4, options: []string{"--icmp-type any", "--icmp-type echo-request", "! --icmp-type 3/4", "--icmp-type 3", "--icmp-type 0/0"}},
	"icmp6":   {ahead: "-p ipv6-icmp", only: only6, options: []string{"--icmpv6-type 128", "! --icmpv6-type 1/3", "--icmpv6-type router-advertisement"}},
	"iprange": {by: [2][]string{{"--src-range 10.0.0.1-10.0.0.9", "! --dst-range 10.0.0.1-10.255.255.255", "! --src-range 1.1.1.1-1.1.1.2 --dst-range 2.2.2.2-2.2.2.2"}, {"--src-range ::1-::9", "! --dst-range 2001:db8::-2001:db8::ffff"}}},
	"length":  {options: []string{"--length 1500", "! --length 100:1500", "--length 0:65535"}},
	"limit":   {options: []string{"--limit 1/sec", "--limit 10/min --limit-burst 7", "--limit 3/hour", "--limit 1/day --limit-burst 1", "--limit 1000/sec", "--limit 7/sec --limit-burst 10000", "--limit 333/min", "--limit 961/min"}},
	"mac":     {options: []string{"--mac-source 02:00:5e:10:00:0f", "! --mac-source 00:11:22:aa:bb:cc"}},
	"mark":    {options: []string{"--mark 0x1", "! --mark 1337", "--mark 0x4000/0x4000", "! --mark 0/0xff00", "--mark 0xffffffff/0xffffffff", "--mark 0/0"}},
	"multiport": {ahead: "-p tcp", options: []string{
		"--dports 80", "--sports 1,2,3", "! --ports 53,1000:2000", "--dports 1:2,3:4,5:6,7:8,9:10,11:12,13:14,15", "--dports 0:65535", "--sports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
	}},
	"nfacct":  {options: []string{"--nfacct-name dropped", "--nfacct-name ct_state_invalid_dropped_pkts"}},
	"owner":   {chain: "mangle OUTPUT", options: []string{"--uid-owner 0", "! --uid-owner 1337", "--gid-owner 1500", "--uid-owner 1-10", "--socket-exists", "! --socket-exists", "--gid-owner 3-4 --suppl-groups", "--uid-owner 1 ! --gid-owner 2"}},
	"physdev": {options: []string{"--physdev-in eth0", "! --physdev-in veth+", "--physdev-is-bridged", "--physdev-is-in", "! --physdev-is-in --physdev-in lo"}},
	"pkttype": {options: []string{"--pkt-type unicast", "! --pkt-type broadcast", "--pkt-type multicast", "--pkt-type otherhost"}},
	"policy": {options: []string{
		"--dir in --pol none", "--dir in --pol ipsec", "--dir in --pol ipsec --reqid 7", "--dir in --pol ipsec --strict --reqid 1 --spi 0x1 --proto esp --mode transport --next ! --reqid 2 --proto ah",
	}, by: [2][]string{
		{"--dir in --pol ipsec --strict --mode tunnel --tunnel-dst 10.0.0.0/8 --tunnel-src 10.0.0.1", "--dir in --pol ipsec --strict --mode tunnel --tunnel-dst 10.0.0.0/8"},
		{"--dir in --pol ipsec --strict --mode tunnel --tunnel-dst 2001:db8::/32 --tunnel-src 2001:db8::1"},
	}},
	"quota": {options: []string{"--quota 1000", "! --quota 18446744073709551615"}},
	"recent": {options: []string{
		"--set", "--set --name ssh --rdest", "--rcheck --seconds 60 --reap --hitcount 4 --name s1", "! --update --seconds 60 --rttl", "--remove --name r1", "--rcheck --name m1 --rsource",
	}, by: [2][]string{{"--rcheck --name m4 --mask 255.255.255.0 --rdest"}, {"--rcheck --name m6 --mask ffff:ffff:: --rsource"}}},
	"rpfilter": {chain: "raw PREROUTING", options: []string{"--loose", "--validmark", "--accept-local", "--invert", "--loose --validmark --accept-local --invert", ""}},
	"sctp":     {ahead: "-p sctp", options: []string{"--sport 1:5", "--dport 80", "! --dport 80 --sport 1", ""}},
	"set": {options: []string{
		"--match-set SET src", "! --match-set SET dst", "--match-set SET src --return-nomatch", "--match-set SET src ! --update-counters --packets-eq 0", "--match-set SET src ! --update-subcounters --bytes-gt 100",
		"--match-set SET dst ! --packets-eq 3 --bytes-lt 7", "--match-set PORTS src,dst", "--match-set PORTS dst,dst",
	}},
	"socket":    {chain: "mangle PREROUTING", options: []string{"", "--transparent", "--nowildcard", "--transparent --nowildcard --restore-skmark"}},
	"state":     {options: []string{"--state NEW", "! --state RELATED,ESTABLISHED", "--state INVALID,UNTRACKED"}},
	"statistic": {options: []string{"--mode random --probability 0.5", "--mode random ! --probability 0.33333333349", "--mode random --probability 1", "--mode random --probability 0", "--mode nth --every 3 --packet 0", "--mode nth ! --every 3 --packet 2"}},
	"string": {options: []string{
		`--string "GET /" --algo bm`, `! --string "a\"b" --algo kmp --from 10 --to 100`, `--hex-string "|0a0d|" --algo bm --icase`, `--hex-string "host|00|" --algo kmp`, `--string "it's" --algo bm`,
	}},
	"tcp": {ahead: "-p tcp", options: []string{
		"--dport 80", "! --sport 1:1023", "--sport 0:0 ! --dport 65535", "--tcp-option 7", "! --tcp-option 7", "--syn", "! --syn", "--tcp-flags ALL NONE", "--tcp-flags SYN,ACK,PSH SYN,URG", "--dport 0:1024", "--dport 1024:65535", "--sport 0:65535 --dport 1:2",
	}},
	"tcpmss": {ahead: "-p tcp", options: []string{"--mss 1400", "! --mss 1:500"}},
	"time": {options: []string{
		"--timestart 01:02:03 --timestop 04:05:06", "--monthdays 1,2,31", "! --monthdays 5", "--weekdays Mon,Sun", "! --weekdays Sat", "--datestart 2020-01-02T03:04:05", "--datestart 2020-01-02 --datestop 2030-01-02T03:04:05 --kerneltz", "--timestart 22:00 --timestop 06:00 --contiguous",
	}},
	"tos": {options: []string{"--tos 0x10/0x3f", "! --tos Minimize-Delay", "--tos 5"}},
	"ttl": {only: only4, options: []string{"--ttl-eq 64", "! --ttl-eq 1", "--ttl-lt 10", "--ttl-gt 255"}},
	"u32": {options: []string{`--u32 "0x0=0x0"`, `! --u32 "0&0xFFFF=0x100:0xFFFF"`, `--u32 "6&0xFF=1,2:5&&4&0x1FFF=0&&0>>22&0x3C@0>>24=0"`, `--u32 "0>>22&0x3C@12>>26&0x3C@8<<3=0:255"`}},
	"udp": {ahead: "-p udp", options: []string{"--dport 53", "! --sport 1:1023", "--sport 53 ! --dport 0:100", "--dport 1:65535"}},
}

// targetWords are the targets that there are words for.
var targetWords = map[string]words{
	"CHECKSUM": {chain: "mangle POSTROUTING", options: []string{"--checksum-fill"}},
	"CLASSIFY": {chain: "mangle POSTROUTING", options: []string{"--set-class 1:ffff", "--set-class 0:0"}},
	"CONNMARK": {chain: "mangle PREROUTING", options: []string{
		"--set-mark 1", "--set-xmark 0x2/0xff", "--save-mark", "--restore-mark --nfmask 0xff --ctmask 0xf0", "--restore-mark --mask 0x4000", "--and-mark 5", "--or-mark 5", "--xor-mark 5",
		"--save-mark --nfmask 0xff --ctmask 0xff00 --left-shift-mark 8", "--restore-mark --right-shift-mark 3", "--set-xmark 4/5 --left-shift-mark 1",
	}},
	"CT": {chain: "raw PREROUTING", options: []string{
		"--notrack", "--zone 7", "--zone-orig 1", "--zone-reply 65535", "--zone mark", "--zone-orig mark", "--ctevents new,related,destroy,reply,assured,protoinfo,helper,mark", "--ctevents new --expevents new --zone 3",
	}},
	"DNAT": {ahead: "-p tcp", chain: "nat PREROUTING", by: [2][]string{
		{"--to-destination 10.0.0.1", "--to-destination 10.0.0.1-10.0.0.9", "--to-destination 10.0.0.1:80", "--to-destination 10.0.0.1:80-90", "--to-destination :8080", "--to-destination 10.0.0.1 --random", "--to-destination 10.0.0.1:80 --random --persistent", "--to-destination 10.0.0.1:1000-2000/500"},
		{"--to-destination 2001:db8::1", "--to-destination 2001:db8::1-2001:db8::9", "--to-destination [2001:db8::1]:80", "--to-destination [2001:db8::1-2001:db8::5]:80-90", "--to-destination :8080", "--to-destination 2001:db8::1 --random --persistent"},
	}},
	"DSCP": {chain: "mangle PREROUTING", options: []string{"--set-dscp 0", "--set-dscp 0x3f", "--set-dscp-class CS1"}},
	"HL":   {chain: "mangle PREROUTING", only: only6, options: []string{"--hl-set 42", "--hl-inc 1", "--hl-dec 1"}},
	"LOG": {options: []string{
		"", "--log-prefix hello", `--log-prefix "a b: "`, "--log-level 7", "--log-level warning", "--log-tcp-sequence --log-tcp-options --log-ip-options --log-uid --log-macdecode", `--log-prefix "x\"y" --log-level debug --log-uid`,
	}},
	"MARK":       {chain: "mangle PREROUTING", options: []string{"--set-mark 1", "--set-xmark 0x539/0xffffffff", "--set-mark 0x1/0xff", "--and-mark 0xff", "--or-mark 0x4000", "--xor-mark 0x4000"}},
	"MASQUERADE": {ahead: "-p tcp", chain: "nat POSTROUTING", options: []string{"", "--to-ports 1024", "--to-ports 1024-2048", "--random", "--random-fully", "--to-ports 1024-2048 --random"}},
	"NETMAP":     {chain: "nat PREROUTING", by: [2][]string{{"--to 10.1.0.0/16", "--to 10.1.2.3", "--to 10.0.0.0/8"}, {"--to 2001:db8::/64", "--to 2001:db8::1"}}},
	"NFLOG":      {options: []string{"", "--nflog-group 1", "--nflog-group 65535 --nflog-prefix hello", `--nflog-prefix "a b" --nflog-threshold 20`, "--nflog-range 128", "--nflog-size 0", "--nflog-size 100 --nflog-group 3"}},
	"NFQUEUE":    {options: []string{"", "--queue-num 7", "--queue-balance 0:3", "--queue-balance 4:9 --queue-bypass", "--queue-num 1 --queue-bypass", "--queue-balance 0:6 --queue-cpu-fanout --queue-bypass"}},
	"NOTRACK":    {chain: "raw PREROUTING", options: []string{""}},
	"REDIRECT":   {ahead: "-p tcp", chain: "nat PREROUTING", options: []string{"", "--to-ports 15001", "--to-ports 1000-2000", "--to-ports 15006 --random"}},
	"REJECT": {ahead: "-p tcp", options: []string{"", "--reject-with tcp-reset"}, by: [2][]string{
		{"--reject-with icmp-net-unreachable", "--reject-with icmp-host-unreachable", "--reject-with icmp-proto-unreachable", "--reject-with icmp-port-unreachable", "--reject-with icmp-net-prohibited", "--reject-with icmp-host-prohibited", "--reject-with icmp-admin-prohibited"},
		{"--reject-with icmp6-no-route", "--reject-with icmp6-adm-prohibited", "--reject-with icmp6-addr-unreachable", "--reject-with icmp6-port-unreachable", "--reject-with icmp6-policy-fail", "--reject-with icmp6-reject-route"},
	}},
	"SET": {options: []string{
		"--add-set SET src", "--del-set SET dst", "--add-set SET src --exist", "--add-set TIMED src --exist --timeout 100", "--add-set TIMED src --timeout 0", "--add-set PORTS src,dst",
	}},
	"SNAT": {ahead: "-p tcp", chain: "nat POSTROUTING", by: [2][]string{
		{"--to-source 10.0.0.1", "--to-source 10.0.0.1-10.0.0.9", "--to-source 10.0.0.1:1000-2000", "--to-source :5000", "--to-source 10.0.0.1 --random-fully", "--to-source 10.0.0.1 --random --persistent"},
		{"--to-source 2001:db8::1", "--to-source [2001:db8::1]:1000-2000", "--to-source 2001:db8::1-2001:db8::2 --persistent"},
	}},
	"TCPMSS": {ahead: "-p tcp --syn", chain: "mangle POSTROUTING", options: []string{"--set-mss 1400", "--clamp-mss-to-pmtu"}},
	"TEE":    {chain: "mangle PREROUTING", by: [2][]string{{"--gateway 10.0.0.1", "--gateway 10.0.0.1 --oif lo"}, {"--gateway 2001:db8::1", "--gateway 2001:db8::1 --oif lo"}}},
	"TOS":    {chain: "mangle PREROUTING", options: []string{"--set-tos 0x1f", "--set-tos 0x1f/0x1f", "--and-tos 0x12", "--or-tos 0x12", "--xor-tos 0x12"}},
	"TPROXY": {ahead: "-p tcp", chain: "mangle PREROUTING", options: []string{"--on-port 15006", "--on-port 15006 --tproxy-mark 0x539/0xffffffff"}, by: [2][]string{{"--on-port 1 --on-ip 127.0.0.1 --tproxy-mark 1"}, {"--on-port 1 --on-ip ::1 --tproxy-mark 1"}}},
	"TRACE":  {chain: "raw PREROUTING", options: []string{""}},
	"TTL":    {chain: "mangle PREROUTING", only: only4, options: []string{"--ttl-set 42", "--ttl-inc 1", "--ttl-dec 1"}},
}

// headWords are what a rule says ahead of its matches.
var headWords = words{options: []string{
	"", "-i lo", "! -i eth0", "-i cali+", "! -i veth+", "-i fifteenletters1", "-p tcp", "-p udp", "! -p tcp", "-p 250", "-p sctp", "-p esp", "-p udplite",
}, by: [2][]string{
	{"-s 10.0.0.1", "! -s 10.0.0.0/8", "-d 192.168.1.0/24", "! -d 127.0.0.1/32", "-s 10.0.0.0/255.0.255.0", "-d 1.2.3.4/9", "-s 0.0.0.0/0", "! -d 0.0.0.0/32", "-f", "! -f", "-p icmp", "-s 1.1.1.1 -d 2.2.2.2 -i lo -p tcp", "-s 240.0.0.0/4 ! -d 169.254.0.0/16 ! -p udp"},
	{"-s 2001:db8::1", "! -s 2001:db8::/32", "-d fe80::/10", "! -d ::1/128", "-s ::/0", "-d ::ffff:1.2.3.4/128", "-s ::1.2.3.4/127", "-d ::0.5.0.1/128", "-d ::5/128", "-p ipv6-icmp", "-s 2001:db8::/ffff:0:ffff::", "-d 2001:db8:0:0:1::/77", "-s ::1 -d ::2 -i lo -p tcp", "! -s fd00::/8 ! -p udp"},
}}
