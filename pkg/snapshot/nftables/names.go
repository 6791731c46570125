package nftables

// names are nft's words for numbers.
type names map[uint64]string

// The words of the datatypes. A number that has two words has nft's first one.
var (
	nfprotoNames = names{2: "ipv4", 10: "ipv6"}
	etherNames   = names{0x0800: "ip", 0x0806: "arp", 0x86dd: "ip6", 0x8100: "8021q", 0x88a8: "8021ad"}
	arpOpNames   = names{1: "request", 2: "reply", 3: "rrequest", 4: "rreply", 8: "inrequest", 9: "inreply", 10: "nak"}
	stateNames   = names{1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}
	dirNames     = names{0: "original", 1: "reply"}
	statusNames  = names{1: "expected", 2: "seen-reply", 4: "assured", 8: "confirmed", 0x10: "snat", 0x20: "dnat", 0x200: "dying"}
	eventNames   = names{
		1 << 0: "new", 1 << 1: "related", 1 << 2: "destroy", 1 << 3: "reply", 1 << 4: "assured", 1 << 5: "protoinfo",
		1 << 6: "helper", 1 << 7: "mark", 1 << 8: "seqadj", 1 << 9: "secmark", 1 << 10: "label",
	}
	tcpFlagNames  = names{1: "fin", 2: "syn", 4: "rst", 8: "psh", 0x10: "ack", 0x20: "urg", 0x40: "ecn", 0x80: "cwr"}
	dccpNames     = names{0: "request", 1: "response", 2: "data", 3: "ack", 4: "dataack", 5: "closereq", 6: "close", 7: "reset", 8: "sync", 9: "syncack"}
	icmpTypeNames = names{
		0: "echo-reply", 3: "destination-unreachable", 4: "source-quench", 5: "redirect", 8: "echo-request", 9: "router-advertisement",
		10: "router-solicitation", 11: "time-exceeded", 12: "parameter-problem", 13: "timestamp-request", 14: "timestamp-reply",
		15: "info-request", 16: "info-reply", 17: "address-mask-request", 18: "address-mask-reply",
	}
	icmpCodeNames = names{
		0: "net-unreachable", 1: "host-unreachable", 2: "prot-unreachable", 3: "port-unreachable", 4: "frag-needed",
		9: "net-prohibited", 10: "host-prohibited", 13: "admin-prohibited",
	}
	icmp6TypeNames = names{
		1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem", 128: "echo-request", 129: "echo-reply",
		130: "mld-listener-query", 131: "mld-listener-report", 132: "mld-listener-done", 133: "nd-router-solicit", 134: "nd-router-advert",
		135: "nd-neighbor-solicit", 136: "nd-neighbor-advert", 137: "nd-redirect", 138: "router-renumbering", 141: "ind-neighbor-solicit",
		142: "ind-neighbor-advert", 143: "mld2-listener-report",
	}
	icmp6CodeNames = names{0: "no-route", 1: "admin-prohibited", 3: "addr-unreachable", 4: "port-unreachable", 5: "policy-fail", 6: "reject-route"}
	icmpxCodeNames = names{0: "no-route", 1: "port-unreachable", 2: "host-unreachable", 3: "admin-prohibited"}
	igmpNames      = names{0x11: "membership-query", 0x12: "membership-report-v1", 0x16: "membership-report-v2", 0x17: "leave-group", 0x22: "membership-report-v3"}
	dscpNames      = names{
		0x00: "cs0", 0x01: "lephb", 0x08: "cs1", 0x10: "cs2", 0x18: "cs3", 0x20: "cs4", 0x28: "cs5", 0x30: "cs6", 0x38: "cs7",
		0x0a: "af11", 0x0c: "af12", 0x0e: "af13", 0x12: "af21", 0x14: "af22", 0x16: "af23", 0x1a: "af31", 0x1c: "af32", 0x1e: "af33",
		0x22: "af41", 0x24: "af42", 0x26: "af43", 0x2c: "va", 0x2e: "ef",
	}
	ecnNames      = names{0: "not-ect", 1: "ect1", 2: "ect0", 3: "ce"} //nolint:misspell // Explicit Congestion Notification
	mobilityNames = names{
		0: "binding-refresh-request", 1: "home-test-init", 2: "careof-test-init", 3: "home-test", 4: "careof-test", 5: "binding-update",
		6: "binding-acknowledgement", 7: "binding-error", 8: "fast-binding-update", 9: "fast-binding-acknowledgement",
		10: "fast-binding-advertisement", 11: "experimental-mobility-header", 12: "home-agent-switch-message",
	}
	addrTypeNames = names{
		0: "unspec", 1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast", 6: "blackhole", 7: "unreachable", 8: "prohibit",
	}
	linkTypeNames = names{1: "ether", 512: "ppp", 768: "ipip", 769: "ipip6", 772: "loopback", 776: "sit", 778: "ipgre"}
	pktTypeNames  = names{0: "host", 1: "broadcast", 2: "multicast", 3: "other"}
	dayNames      = names{0: "Sunday", 1: "Monday", 2: "Tuesday", 3: "Wednesday", 4: "Thursday", 5: "Friday", 6: "Saturday"}

	// protocolNames are those of /etc/protocols, which nft reads. The image has no such file.
	protocolNames = names{
		0: "ip", 1: "icmp", 2: "igmp", 3: "ggp", 4: "ipencap", 5: "st", 6: "tcp", 8: "egp", 9: "igp", 12: "pup", 17: "udp", 20: "hmp",
		22: "xns-idp", 27: "rdp", 29: "iso-tp4", 33: "dccp", 36: "xtp", 37: "ddp", 38: "idpr-cmtp", 41: "ipv6", 43: "ipv6-route",
		44: "ipv6-frag", 45: "idrp", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah", 57: "skip", 58: "ipv6-icmp", 59: "ipv6-nonxt",
		60: "ipv6-opts", 73: "rspf", 81: "vmtp", 88: "eigrp", 89: "ospf", 93: "ax.25", 94: "ipip", 97: "etherip", 98: "encap", 103: "pim",
		108: "ipcomp", 112: "vrrp", 115: "l2tp", 124: "isis", 132: "sctp", 133: "fc", 135: "mobility-header", 136: "udplite",
		137: "mpls-in-ip", 138: "manet", 139: "hip", 140: "shim6", 141: "wesp", 142: "rohc", 143: "ethernet",
	}
)

// The words of statements and objects.
var (
	familyNames  = names{1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
	objectNames  = names{1: "counter", 2: "quota", 3: "ct helper", 4: "limit", 7: "ct timeout", 8: "secmark", 9: "ct expectation", 10: "synproxy"}
	unitNames    = names{1: "second", 60: "minute", 3600: "hour", 86400: "day", 604800: "week"}
	levelNames   = names{0: "emerg", 1: "alert", 2: "crit", 3: "err", 4: "warn", 5: "notice", 6: "info", 7: "debug", 8: "audit"}
	dynsetNames  = names{0: "add", 1: "update", 2: "delete"}
	natNames     = names{0: "snat", 1: "dnat"}
	policyNames  = names{0: "drop", 1: "accept"}
	inetHooks    = names{0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
	arpHooks     = names{0: "input", 1: "output", 2: "forward", 3: "ingress"}
	netdevHooks  = names{0: "ingress", 1: "egress"}
	tableFlags   = []string{"dormant", "owner", "persist"}
	natFlags     = []string{"", "", "random", "persistent", "fully-random", "", "netmap"}
	logFlags     = []string{"tcp sequence", "tcp options", "ip options", "skuid", "", "ether"}
	queueFlags   = []string{"bypass", "fanout"}
	fibFlags     = []string{"saddr", "daddr", "mark", "iif", "oif"}
	compareNames = names{0: "==", 1: "!=", 2: "<", 3: "<=", 4: ">", 5: ">="}
)

// of returns the word, or "unknown".
func (n names) of(number uint32) string {
	if word, ok := n[uint64(number)]; ok {
		return word
	}
	return "unknown"
}

// words are those of the bits that are set; a bit without a word has none.
func words(list []string, bits uint32) (out []any) {
	for i, word := range list {
		if bits>>i&1 == 1 && word != "" {
			out = append(out, word)
		}
	}
	return out
}
