package iptsave

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

// option reads an option with its arguments; text is all of it.
type option struct {
	args int
	read func(p *parser, args []string, text string) error
	of   []string // the targets that have it
}

// options are those that every rule may have.
var options = map[string]option{
	"-s": {1, address(trace.Saddr), nil},
	"-d": {1, address(trace.Daddr), nil},
	"-i": {1, link(trace.IIFName), nil},
	"-o": {1, link(trace.OIFName), nil},
	"-p": {1, protocol, nil},
	"-m": {1, module, nil},
	"-j": {1, jump, nil},
	"-g": {1, goTo, nil},
	"-c": {2, nothing, nil},
}

// modules are the options of each module (-m). What is missing here is unknown to the walk.
var modules = map[string]map[string]option{
	"tcp": {
		"--sport": {1, ports(trace.Sport), nil}, "--source-port": {1, ports(trace.Sport), nil},
		"--dport": {1, ports(trace.Dport), nil}, "--destination-port": {1, ports(trace.Dport), nil},
		"--tcp-flags": {2, tcpFlags, nil}, "--syn": {0, syn, nil},
	},
	"udp":     portOptions,
	"sctp":    portOptions,
	"dccp":    portOptions,
	"udplite": portOptions,
	"icmp":    {"--icmp-type": {1, icmpType(icmpTypes), nil}},
	"icmp6":   {"--icmpv6-type": {1, icmpType(icmp6Types), nil}},
	"multiport": {
		"--sports": {1, ports(trace.Sport), nil}, "--source-ports": {1, ports(trace.Sport), nil},
		"--dports": {1, ports(trace.Dport), nil}, "--destination-ports": {1, ports(trace.Dport), nil},
		"--ports": {1, eitherPort, nil},
	},
	"comment": {"--comment": {1, comment, nil}},
	"state":   {"--state": {1, ctState, nil}},
	"conntrack": {
		"--ctstate": {1, ctState, nil}, "--ctstatus": {1, ctStatus, nil}, "--ctdir": {1, ctDir, nil}, "--ctproto": {1, ctProtocol, nil},
		"--ctorigsrc": {1, address(trace.CTOrigSaddr), nil}, "--ctorigdst": {1, address(trace.CTOrigDaddr), nil},
		"--ctorigsrcport": {1, ports(trace.CTOrigSport), nil}, "--ctorigdstport": {1, ports(trace.CTOrigDport), nil},
	},
	"mark":     {"--mark": {1, mark(trace.Mark), nil}},
	"connmark": {"--mark": {1, mark(trace.CTMark), nil}},
	"owner": {
		"--uid-owner": {1, owner(trace.SKUID), nil}, "--gid-owner": {1, owner(trace.SKGID), nil}, "--socket-exists": {0, socketExists, nil},
	},
	"addrtype": {
		"--src-type": {1, addrType(trace.SaddrType), nil}, "--dst-type": {1, addrType(trace.DaddrType), nil},
		"--limit-iface-in": {0, limitIn, nil}, "--limit-iface-out": {0, limitOut, nil},
	},
	"statistic": {
		"--mode": {1, statisticMode, nil}, "--probability": {1, probability, nil}, "--every": {1, every, nil}, "--packet": {1, packet, nil},
	},
	"nfacct": {"--nfacct-name": {1, always, nil}}, // counts
	"recent": { // a packet that only goes into the list matches
		"--set": {0, always, nil}, "--name": {1, nothing, nil}, "--mask": {1, nothing, nil}, "--rsource": {0, nothing, nil}, "--rdest": {0, nothing, nil},
	},
	"set":     {"--match-set": {2, matchSet, nil}},
	"iprange": {"--src-range": {1, addressRange(trace.Saddr), nil}, "--dst-range": {1, addressRange(trace.Daddr), nil}},
}

var portOptions = map[string]option{
	"--sport": {1, ports(trace.Sport), nil}, "--source-port": {1, ports(trace.Sport), nil},
	"--dport": {1, ports(trace.Dport), nil}, "--destination-port": {1, ports(trace.Dport), nil},
}

func (p *parser) match(left trace.Expr, right *trace.Set, text string) {
	p.add(trace.Match{Left: left, Not: p.not, Right: right, Text: text})
}

func nothing(*parser, []string, string) error { return nil }

func module(p *parser, args []string, text string) error {
	p.module, p.begin, p.since, p.doubt = args[0], p.next-2, len(p.rule.Statements), 0
	if p.next < len(p.tokens) && p.tokens[p.next].text == "[unknown]" {
		p.next++
		return errors.New("the rule's binary form is not known")
	}
	if _, ok := modules[p.module]; !ok && (p.next == len(p.tokens) || !strings.HasPrefix(p.tokens[p.next].text, "--")) {
		p.add(trace.UnknownMatch{Text: text})
	}
	return nil
}

// always is an option that holds for every packet.
func always(p *parser, _ []string, _ string) error {
	if p.not {
		return errors.New("a walk does not know what its negation means")
	}
	return nil
}

func comment(p *parser, args []string, _ string) error {
	p.rule.Comment = strings.TrimSpace(p.rule.Comment + " " + args[0])
	return nil
}

func address(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		addr, mask, hasMask := strings.Cut(args[0], "/")
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return fmt.Errorf("%q is no address", addr)
		}
		if a.Is4() != (p.file.family == trace.IP) {
			return fmt.Errorf("%s is of the other address family", addr)
		}
		if !hasMask {
			p.match(f, trace.NewSet(trace.Just(trace.Addr(a))), text)
			return nil
		}
		if bits, err := strconv.Atoi(mask); err == nil {
			prefix, err := a.Prefix(bits)
			if err != nil {
				return fmt.Errorf("%q is no prefix", args[0])
			}
			p.match(f, trace.NewSet(trace.Prefix(prefix)), text)
			return nil
		}
		m, err := netip.ParseAddr(mask)
		if err != nil {
			return fmt.Errorf("%q is no mask", mask)
		}
		p.match(trace.And{A: f, B: trace.Const{trace.Addr(m)}}, trace.NewSet(trace.Just(trace.Addr(a))), text)
		return nil
	}
}

func addressRange(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		lo, hi, ok := strings.Cut(args[0], "-")
		if !ok {
			hi = lo
		}
		a, errA := netip.ParseAddr(lo)
		b, errB := netip.ParseAddr(hi)
		if errA != nil || errB != nil {
			return fmt.Errorf("%q is no range of addresses", args[0])
		}
		p.match(f, trace.NewSet(trace.Range{Lo: trace.Addr(a), Hi: trace.Addr(b)}), text)
		return nil
	}
}

func link(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		prefix, wild := strings.CutSuffix(args[0], "+")
		if wild {
			p.match(f, trace.NewSet(trace.Wildcard(prefix)), text)
			return nil
		}
		p.match(f, trace.NewSet(trace.Just(trace.Name(args[0]))), text)
		return nil
	}
}

var protocols = map[string]uint8{
	"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP, "ipv6-icmp": unix.IPPROTO_ICMPV6, "icmpv6": unix.IPPROTO_ICMPV6,
	"icmp6": unix.IPPROTO_ICMPV6, "sctp": unix.IPPROTO_SCTP, "dccp": unix.IPPROTO_DCCP, "udplite": unix.IPPROTO_UDPLITE, "esp": unix.IPPROTO_ESP,
	"ah": unix.IPPROTO_AH, "gre": unix.IPPROTO_GRE, "ipip": unix.IPPROTO_IPIP, "ipencap": unix.IPPROTO_IPIP, "igmp": unix.IPPROTO_IGMP,
	"ipv6": unix.IPPROTO_IPV6, "vrrp": 112, "pim": unix.IPPROTO_PIM, "l2tp": 115, "ipv6-mh": 135, "mh": 135, "ospf": 89,
}

func protocol(p *parser, args []string, text string) error {
	if args[0] == "all" {
		return nil
	}
	number, ok := protocols[args[0]]
	if !ok {
		n, err := strconv.ParseUint(args[0], 10, 8)
		if err != nil {
			return fmt.Errorf("%q is no protocol", args[0])
		}
		number = uint8(n)
	}
	p.match(trace.L4Proto, trace.NewSet(trace.Just(trace.Number(number))), text)
	return nil
}

// portSet reads "80", "80:90", "80,90:95".
func portSet(list string) (*trace.Set, error) {
	var ranges []trace.Range
	for entry := range strings.SplitSeq(list, ",") {
		lo, hi, ok := strings.Cut(entry, ":")
		switch {
		case !ok:
			hi = lo
		case lo == "":
			lo = "0"
		case hi == "":
			hi = "65535"
		}
		r, err := numbers(lo, hi, 16)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return trace.NewSet(ranges...), nil
}

func numbers(lo, hi string, bits int) (trace.Range, error) {
	a, errA := strconv.ParseUint(lo, 0, bits)
	b, errB := strconv.ParseUint(hi, 0, bits)
	if err := errors.Join(errA, errB); err != nil {
		return trace.Range{}, fmt.Errorf("%q is no number of %d bits", lo, bits)
	}
	return trace.Range{Lo: trace.Number(a), Hi: trace.Number(b)}, nil
}

func ports(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		set, err := portSet(args[0])
		if err == nil {
			p.match(f, set, text)
		}
		return err
	}
}

func eitherPort(p *parser, args []string, text string) error {
	set, err := portSet(args[0])
	if err == nil {
		p.add(trace.AnyOf{
			Matches: []trace.Match{{Left: trace.Sport, Right: set, Text: text}, {Left: trace.Dport, Right: set, Text: text}}, Not: p.not, Text: text,
		})
	}
	return err
}

var flagNames = map[string]uint64{"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32, "ALL": 63, "NONE": 0}

func tcpFlags(p *parser, args []string, text string) error {
	mask, err := sum(args[0], flagNames)
	if err != nil {
		return err
	}
	value, err := sum(args[1], flagNames)
	if err != nil {
		return err
	}
	p.match(trace.Mask(trace.TCPFlags, mask), trace.NewSet(trace.Just(trace.Number(value))), text)
	return nil
}

func syn(p *parser, _ []string, text string) error {
	p.match(trace.Mask(trace.TCPFlags, 2|4|16|1), trace.NewSet(trace.Just(trace.Number(uint8(2)))), text)
	return nil
}

// sum adds up the bits of a list of names.
func sum(list string, bits map[string]uint64) (uint64, error) {
	var all uint64
	for name := range strings.SplitSeq(list, ",") {
		bit, ok := bits[strings.ToUpper(name)]
		if !ok {
			return 0, fmt.Errorf("%q is not known", name)
		}
		all |= bit
	}
	return all, nil
}

// Names that iptables-save prints numbers for are not here.
var (
	icmpTypes  = map[string]string{"echo-request": "8", "echo-reply": "0", "destination-unreachable": "3", "time-exceeded": "11"}
	icmp6Types = map[string]string{"echo-request": "128", "echo-reply": "129", "destination-unreachable": "1", "packet-too-big": "2", "time-exceeded": "3"}
)

func icmpType(names map[string]string) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		if args[0] == "any" {
			if p.not {
				p.add(trace.Match{Left: trace.L4Proto, Right: trace.NewSet(), Text: text}) // no packet
			}
			return nil
		}
		kind, code, hasCode := strings.Cut(args[0], "/")
		if number, ok := names[kind]; ok {
			kind = number
		}
		r, err := numbers(kind, kind, 8)
		if err != nil {
			return err
		}
		if !hasCode {
			p.match(trace.ICMPType, trace.NewSet(r), text)
			return nil
		}
		c, err := numbers(code, code, 8)
		if err != nil {
			return err
		}
		p.match(trace.Concat{trace.ICMPType, trace.ICMPCode}, &trace.Set{Elements: []trace.Element{{Key: []trace.Range{r, c}}}}, text)
		return nil
	}
}

// valueMask reads "VALUE" or "VALUE/MASK".
func valueMask(s string) (value, mask uint32, err error) {
	v, m, hasMask := strings.Cut(s, "/")
	value64, err := strconv.ParseUint(v, 0, 32)
	mask64 := uint64(0xffffffff)
	if err == nil && hasMask {
		mask64, err = strconv.ParseUint(m, 0, 32)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%q is no mark", s)
	}
	return uint32(value64), uint32(mask64), nil
}

func mark(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		value, mask, err := valueMask(args[0])
		if err == nil {
			p.match(trace.Mask(f, uint64(mask)), trace.NewSet(trace.Just(trace.Number(value))), text)
		}
		return err
	}
}

func owner(f trace.Field) func(*parser, []string, string) error {
	return func(p *parser, args []string, text string) error {
		lo, hi, ok := strings.Cut(args[0], "-")
		if !ok {
			hi = lo
		}
		r, err := numbers(lo, hi, 32)
		if err == nil {
			p.add(trace.Match{Left: f, Not: p.not, Right: trace.NewSet(r), NotOfNone: true, Text: text})
		}
		return err
	}
}

func socketExists(p *parser, _ []string, text string) error {
	p.add(trace.Match{Left: trace.SKUID, Not: p.not, Right: trace.NewSet(trace.Range{Hi: trace.Number(^uint32(0))}), NotOfNone: true, Text: text})
	return nil
}

func statisticMode(p *parser, _ []string, text string) error {
	p.mode = text
	return nil
}

func probability(p *parser, args []string, text string) error {
	value, err := strconv.ParseFloat(args[0], 64)
	if err != nil || value < 0 || value > 1 {
		return fmt.Errorf("%q is no probability", args[0])
	}
	p.add(trace.Chance{P: negated(value, p.not), Text: strings.TrimSpace(p.mode + " " + text)})
	return nil
}

func negated(p float64, not bool) float64 {
	if not {
		return 1 - p
	}
	return p
}

// every is one packet of so many: to a walk, a probability.
func every(p *parser, args []string, text string) error {
	n, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is no number of packets", args[0])
	}
	p.add(trace.Chance{P: negated(1/float64(n), p.not), Text: strings.TrimSpace(p.mode + " " + text)})
	return nil
}

func packet(*parser, []string, string) error { return nil }
