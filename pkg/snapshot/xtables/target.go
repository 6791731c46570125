package xtables

import "github.com/detour-cni/detour/pkg/rules"

// targets are the kernel's modules, but for the standard one.
var targets = map[string][]decoder{
	"CHECKSUM":   {revision(0, 1, func(p *printer, b blob) { p.sayIf(uint32(b[0]), []flag{{1, " --checksum-fill"}}) })},
	"CLASSIFY":   {revision(0, 4, printClassify)},
	"CONNMARK":   {revision(1, 13, func(p *printer, b blob) { printConnmark(p, b, b[12]) }), revision(2, 15, printConnmark2)},
	"CT":         ct,
	"DNAT":       nat("--to-destination "),
	"DSCP":       {revision(0, 1, func(p *printer, b blob) { p.sayf(" --set-dscp 0x%02x", b[0]) })},
	"HL":         {revision(0, 2, func(p *printer, b blob) { printSetTTL(p, "hl", b) })},
	"LOG":        {revision(0, 32, printLog)},
	"MARK":       {revision(2, 8, func(p *printer, b blob) { p.sayf(" --set-xmark 0x%x/0x%x", b.u32(0), b.u32(4)) })},
	"MASQUERADE": nat(portsOption),
	"NETMAP":     {revision(0, 20, printNetmap)},
	"NFLOG":      {revision(0, 17, printNflog)},
	"NFQUEUE":    nfqueue,
	"NOTRACK":    {revision(0, 0, func(*printer, blob) {})},
	"REDIRECT":   nat(portsOption),
	"REJECT":     {revision(0, 4, printReject)},
	"SET":        ipsetTarget,
	"SNAT":       nat("--to-source "),
	"TCPMSS":     {revision(0, 2, printTCPMSS)},
	"TEE":        {revision(1, 32, printTee)},
	"TOS":        {revision(1, 2, func(p *printer, b blob) { p.sayf(" --set-tos 0x%02x/0x%02x", b[0], b[1]) })},
	"TPROXY":     {revision(0, 14, printTProxy4), revision(1, 26, func(p *printer, b blob) { printTProxy(p, b, b.port(24)) })},
	"TRACE":      {revision(0, 0, func(*printer, blob) {})},
	"TTL":        {revision(0, 2, func(p *printer, b blob) { printSetTTL(p, "ttl", b) })},
}

func printClassify(p *printer, b blob) {
	p.sayf(" --set-class %.4x:%.4x", b.u32(0)>>16, b.u32(0)&0xffff)
}

func printConnmark(p *printer, b blob, mode byte) {
	switch mode {
	case 0:
		p.sayf(" --set-xmark 0x%x/0x%x", b.u32(0), b.u32(4))
		return
	case 1:
		p.say(" --save-mark")
	case 2:
		p.say(" --restore-mark")
	default:
		p.unknown = true
	}
	p.sayf(" --nfmask 0x%x --ctmask 0x%x", b.u32(8), b.u32(4))
}

func printConnmark2(p *printer, b blob) {
	printConnmark(p, b, b[14])
	if bits := b[13]; bits != 0 {
		p.sayNth([]string{" --left-shift-mark ", " --right-shift-mark "}, int(b[12]))
		p.sayf("%d", bits)
	}
}

// The flags of target CT.
const (
	ctNotrack = 1 << iota
	ctNotrackAlias
	ctZoneOriginal
	ctZoneReply
	ctZoneMark
)

var ct = []decoder{
	{revisions: []int{0}, size: 28, print: func(p *printer, b blob) { printCT(p, b, "") }, alias: nameCT},
	{revisions: []int{1, 2}, size: 60, print: func(p *printer, b blob) { printCT(p, b, b.string(28, 32)) }, alias: nameCT},
}

func nameCT(b blob) string {
	if b.u16(0)&ctNotrackAlias != 0 {
		return "NOTRACK"
	}
	return "CT"
}

var ctEvents = []flag{
	{1 << 0, "new"}, {1 << 1, "related"}, {1 << 2, "destroy"}, {1 << 3, "reply"}, {1 << 4, "assured"},
	{1 << 5, "protoinfo"}, {1 << 6, "helper"}, {1 << 7, "mark"}, {1 << 8, "natseqinfo"}, {1 << 9, "secmark"},
}

func printCT(p *printer, b blob, timeout string) {
	flags, zone, helper := b.u16(0), b.u16(2), b.string(12, 16)
	if flags&ctNotrackAlias != 0 {
		return
	}
	if flags&ctNotrack != 0 {
		p.say(" --notrack")
	}
	if helper != "" {
		p.say(" --helper " + helper)
	}
	if timeout != "" {
		p.say(" --timeout " + timeout)
	}
	if events := b.u32(4); events != 0 {
		p.say(" --ctevents ")
		p.sayList(events, ctEvents)
	}
	if events := b.u32(8); events != 0 {
		p.say(" --expevents ")
		p.sayList(events, ctEvents[:1])
	}
	if flags&ctZoneMark == 0 && zone == 0 {
		return
	}
	p.say(" --zone")
	switch flags & (ctZoneOriginal | ctZoneReply) {
	case ctZoneOriginal:
		p.say("-orig")
	case ctZoneReply:
		p.say("-reply")
	}
	if flags&ctZoneMark != 0 {
		p.say(" mark")
	} else {
		p.sayf(" %d", zone)
	}
}

func printSetTTL(p *printer, name string, b blob) {
	p.sayNth([]string{" --" + name + "-set ", " --" + name + "-inc ", " --" + name + "-dec "}, int(b[0]))
	p.sayf("%d", b[1])
}

// logLevel is not printed.
const logLevel = 4

func printLog(p *printer, b blob) {
	if prefix := b.string(2, 30); prefix != "" {
		p.say(" --log-prefix")
		p.quote(prefix)
	}
	if b[0] != logLevel {
		p.sayf(" --log-level %d", b[0])
	}
	p.sayIf(uint32(b[1]), logFlags)
}

var logFlags = []flag{
	{1, " --log-tcp-sequence"}, {2, " --log-tcp-options"}, {4, " --log-ip-options"}, {8, " --log-uid"}, {32, " --log-macdecode"},
}

func printNflog(p *printer, b blob) {
	size, group, threshold, flags := b.u32(0), b.u16(4), b.u16(6), b.u16(8)
	if prefix := b.string(12, len(b)-12); prefix != "" {
		p.say(" --nflog-prefix")
		p.quote(prefix)
	}
	p.numberUnless(0, " --nflog-group", group)
	if flags&1 != 0 {
		p.sayf(" --nflog-size %d", size)
	} else {
		p.numberUnless(0, " --nflog-range", size)
	}
	p.numberUnless(0, " --nflog-threshold", threshold)
}

var nfqueue = []decoder{
	revision(0, 2, func(p *printer, b blob) { p.queue(b.u16(0), 1, 0) }),
	revision(1, 4, func(p *printer, b blob) { p.queue(b.u16(0), b.u16(2), 0) }),
	{revisions: []int{2, 3}, size: 6, print: func(p *printer, b blob) { p.queue(b.u16(0), b.u16(2), b.u16(4)) }},
}

func (p *printer) queue(first, count, flags uint32) {
	if count > 1 {
		p.sayf(" --queue-balance %d:%d", first, first+count-1)
	} else {
		p.sayf(" --queue-num %d", first)
	}
	p.sayIf(flags, []flag{{1, " --queue-bypass"}, {2, " --queue-cpu-fanout"}})
}

// rejections are what REJECT answers with; "" is not allowed.
var rejections = map[rules.Family][]string{
	rules.IPv4: {
		"icmp-net-unreachable", "icmp-host-unreachable", "icmp-proto-unreachable", "icmp-port-unreachable", "",
		"icmp-net-prohibited", "icmp-host-prohibited", "tcp-reset", "icmp-admin-prohibited",
	},
	rules.IPv6: {
		"icmp6-no-route", "icmp6-adm-prohibited", "", "icmp6-addr-unreachable", "icmp6-port-unreachable", "",
		"tcp-reset", "icmp6-policy-fail", "icmp6-reject-route",
	},
}

func printReject(p *printer, b blob) {
	p.say(" --reject-with ")
	p.sayNth(rejections[p.family], int(b.u32(0)))
}

// clampMSS is XT_TCPMSS_CLAMP_PMTU.
const clampMSS = 0xffff

func printTCPMSS(p *printer, b blob) {
	if b.u16(0) == clampMSS {
		p.say(" --clamp-mss-to-pmtu")
	} else {
		p.sayf(" --set-mss %d", b.u16(0))
	}
}

func printTee(p *printer, b blob) {
	p.say(" --gateway ")
	p.addr(b)
	if device := b.string(16, 16); device != "" {
		p.say(" --oif " + device)
	}
}

func printTProxy4(p *printer, b blob) {
	if p.family != rules.IPv4 {
		p.unknown = true
		return
	}
	printTProxy(p, b, b.port(12))
}

func printTProxy(p *printer, b blob, port uint32) {
	p.sayf(" --on-port %d --on-ip ", port)
	p.addr(b[8:])
	p.sayf(" --tproxy-mark 0x%x/0x%x", b.u32(4), b.u32(0))
}
