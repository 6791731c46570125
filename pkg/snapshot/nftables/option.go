package nftables

import "golang.org/x/sys/unix"

// option is an IPv6 extension header, an option of IPv4 or TCP, or a chunk of SCTP.
type option struct {
	name   string
	number byte
	fields []field
}

// The kinds of options: NFT_EXTHDR_OP_*.
const (
	optionIPv6 = iota
	optionTCP
	optionIPv4
	optionSCTP
)

var optionKinds = names{optionIPv6: "exthdr", optionTCP: "tcp option", optionIPv4: "ip option", optionSCTP: "sctp chunk"}

// plain are fields of integers, each behind the one before.
func plain(fields ...field) []field {
	offset := 0
	for i := range fields {
		fields[i].offset, fields[i].datatype = offset, typeInteger
		offset += fields[i].bits
	}
	return fields
}

func bitsField(name string, bits int) field { return field{name: name, bits: bits} }

// tcpOption, ipOption and chunk have the fields that all of their kind have, and more.
func tcpOption(name string, number byte, more ...field) option {
	return option{name, number, plain(append([]field{bitsField("kind", 8), bitsField("length", 8)}, more...)...)}
}

func ipOption(name string, number byte) option {
	return option{name, number, plain(bitsField("type", 8), bitsField("length", 8), bitsField("ptr", 8), bitsField("addr", 32))}
}

func chunk(name string, number byte, more ...field) option {
	return option{name, number, plain(append([]field{bitsField("type", 8), bitsField("flags", 8), bitsField("length", 16)}, more...)...)}
}

var (
	initFields = []field{
		bitsField("init-tag", 32), bitsField("a-rwnd", 32), bitsField("num-outbound-streams", 16), bitsField("num-inbound-streams", 16), bitsField("initial-tsn", 32),
	}
	sackFields = []field{
		bitsField("left", 32), bitsField("right", 32), bitsField("left", 32), bitsField("right", 32),
		bitsField("left", 32), bitsField("right", 32), bitsField("left", 32), bitsField("right", 32),
	}
)

// options are in the order in which a field is looked for: an IPv6 routing header has three layouts.
var options = [...][]option{
	optionIPv6: {
		{"hbh", unix.IPPROTO_HOPOPTS, []field{{"nexthdr", 0, 8, typeProtocol, 0}, {"hdrlength", 8, 8, typeInteger, 0}}},
		{"rt", unix.IPPROTO_ROUTING, []field{
			{"nexthdr", 0, 8, typeProtocol, 0}, {"hdrlength", 8, 8, typeInteger, 0}, {"type", 16, 8, typeInteger, 0}, {"seg-left", 24, 8, typeInteger, 0},
		}},
		{"srh", unix.IPPROTO_ROUTING, []field{
			{"last-entry", 32, 8, typeInteger, 0}, {"flags", 40, 8, typeInteger, 0}, {"tag", 48, 16, typeInteger, 0},
			{"sid[1]", 64, 128, typeIPv6, 0}, {"sid[2]", 192, 128, typeIPv6, 0},
		}},
		{"rt0", unix.IPPROTO_ROUTING, []field{{"reserved", 32, 32, typeInteger, 0}, {"addr[1]", 64, 128, typeIPv6, 0}, {"addr[2]", 192, 128, typeIPv6, 0}}},
		{"frag", unix.IPPROTO_FRAGMENT, []field{
			{"nexthdr", 0, 8, typeProtocol, 0}, {"reserved", 8, 8, typeInteger, 0}, {"frag-off", 16, 13, typeInteger, 0},
			{"reserved2", 29, 2, typeInteger, 0}, {"more-fragments", 31, 1, typeInteger, 0}, {"id", 32, 32, typeInteger, 0},
		}},
		{"dst", unix.IPPROTO_DSTOPTS, []field{{"nexthdr", 0, 8, typeProtocol, 0}, {"hdrlength", 8, 8, typeInteger, 0}}},
		{"mh", unix.IPPROTO_MH, []field{
			{"nexthdr", 0, 8, typeProtocol, 0}, {"hdrlength", 8, 8, typeInteger, 0}, {"type", 16, 8, typeMobility, 0},
			{"reserved", 24, 8, typeInteger, 0}, {"checksum", 32, 16, typeInteger, 0},
		}},
	},
	optionTCP: {
		{"eol", 0, plain(bitsField("kind", 8))}, {"nop", 1, plain(bitsField("kind", 8))},
		tcpOption("maxseg", 2, bitsField("size", 16)), tcpOption("window", 3, bitsField("count", 8)), tcpOption("sack-perm", 4),
		tcpOption("sack", 5, sackFields...), tcpOption("timestamp", 8, bitsField("tsval", 32), bitsField("tsecr", 32)),
		tcpOption("md5sig", 19), tcpOption("mptcp", 30, bitsField("subtype", 4)), tcpOption("fastopen", 34),
	},
	optionIPv4: {
		ipOption("rr", 7), ipOption("lsrr", 131), ipOption("ssrr", 137),
		{"ra", 148, plain(bitsField("type", 8), bitsField("length", 8), bitsField("value", 16))},
	},
	optionSCTP: {
		chunk("data", 0, bitsField("tsn", 32), bitsField("stream", 16), bitsField("ssn", 16), bitsField("ppid", 32)),
		chunk("init", 1, initFields...), chunk("init-ack", 2, initFields...),
		chunk("sack", 3, bitsField("cum-tsn-ack", 32), bitsField("a-rwnd", 32), bitsField("num-gap-ack-blocks", 16), bitsField("num-dup-tsns", 16)),
		chunk("heartbeat", 4), chunk("heartbeat-ack", 5), chunk("abort", 6), chunk("shutdown", 7, bitsField("cum-tsn-ack", 32)),
		chunk("shutdown-ack", 8), chunk("error", 9), chunk("cookie-echo", 10), chunk("cookie-ack", 11), chunk("ecne", 12, bitsField("lowest-tsn", 32)),
		chunk("cwr", 13, bitsField("lowest-tsn", 32)), chunk("shutdown-complete", 14), chunk("asconf-ack", 128, bitsField("seqno", 32)),
		chunk("forward-tsn", 192, bitsField("new-cum-tsn", 32)), chunk("asconf", 193, bitsField("seqno", 32)),
	},
}

// findOption returns the option and its field; field is nil if the option has none there, option if there is no such option.
func findOption(kind uint32, number byte, offset, bits int) (found *option, at *field) {
	if int(kind) >= len(options) {
		return nil, nil
	}
	for i := range options[kind] {
		o := &options[kind][i]
		if o.number != number {
			continue
		}
		if found == nil {
			found = o
		}
		for j := range o.fields {
			if o.fields[j].offset == offset && o.fields[j].bits == bits {
				return o, &o.fields[j]
			}
		}
	}
	return found, nil
}
