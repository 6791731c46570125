package xtables

import (
	"strconv"
	"strings"
	"time"
)

// matches are the kernel's modules. The blobs are struct xt_NAME_info or alike of linux/netfilter/xt_NAME.h.
var matches = map[string][]decoder{
	"addrtype":  {revision(0, 12, printAddrtype0), revision(1, 8, printAddrtype)},
	"ah":        {revision(0, 9, printAH)},
	"bpf":       {revision(0, 516, printBPF0), revision(1, 520, printBPF)},
	"cgroup":    cgroup,
	"comment":   {revision(0, 1, func(p *printer, b blob) { p.say(" --comment"); p.quote(b.string(0, min(len(b), 255))) })},
	"connbytes": {revision(0, 18, printConnbytes)},
	"connlimit": {revision(0, 24, printConnlimit0), revision(1, 24, printConnlimit)},
	"connmark":  {revision(1, 9, printMark)},
	"conntrack": conntrack,
	"cpu":       {revision(0, 8, func(p *printer, b blob) { p.not(b.u32(4) != 0); p.sayf(" --cpu %d", b.u32(0)) })},
	"dscp":      {revision(0, 2, func(p *printer, b blob) { p.not(b[1] != 0); p.sayf(" --dscp 0x%02x", b[0]) })},
	"esp":       {revision(0, 9, printESP)},
	"hashlimit": hashlimit,
	"helper":    {revision(0, 34, func(p *printer, b blob) { p.not(b.u32(0) != 0); p.say(" --helper"); p.quote(b.string(4, 30)) })},
	"hl":        {revision(0, 2, func(p *printer, b blob) { printTTL(p, "hl", b) })},
	"icmp":      {revision(0, 4, printICMP)},
	"icmp6":     {revision(0, 4, printICMP6)},
	"iprange":   {revision(1, 65, printIPRange)},
	"length":    {revision(0, 5, func(p *printer, b blob) { printLength(p, " --length ", b) })},
	"limit":     {revision(0, 8, printLimit)},
	"mac":       {revision(0, 12, printMAC)},
	"mark":      {revision(1, 9, printMark)},
	"multiport": {revision(0, 32, printMultiport0), revision(1, 48, printMultiport)},
	"nfacct":    {{revisions: []int{0, 1}, size: 32, print: printNfacct}},
	"owner":     {revision(1, 18, printOwner)},
	"physdev":   {revision(0, 66, printPhysdev)},
	"pkttype":   {revision(0, 8, printPkttype)},
	"policy":    {revision(0, 308, printPolicy)},
	"quota":     {revision(0, 16, func(p *printer, b blob) { p.not(b.u32(0)&1 != 0); p.sayf(" --quota %d", b.u64(8)) })},
	"recent":    {revision(0, 211, printRecent), revision(1, 228, printRecent1)},
	"rpfilter":  {revision(0, 1, func(p *printer, b blob) { p.sayIf(uint32(b[0]), rpfilterFlags) })},
	"sctp":      {revision(0, 292, printSCTP)},
	"set":       ipset,
	"socket":    {revision(0, 0, func(*printer, blob) {}), {revisions: []int{1, 2, 3}, size: 1, print: printSocket}},
	"state":     {revision(0, 4, func(p *printer, b blob) { p.say(" --state "); p.sayList(b.u32(0), stateStates) })},
	"statistic": {revision(0, 16, printStatistic)},
	"string":    {{revisions: []int{0, 1}, size: 150, print: printString}},
	"tcp":       {revision(0, 12, printTCP)},
	"tcpmss":    {revision(0, 5, func(p *printer, b blob) { printLength(p, " --mss ", b) })},
	"time":      {revision(0, 22, printTime)},
	"tos":       {revision(1, 3, func(p *printer, b blob) { p.not(b[2] != 0); p.sayf(" --tos 0x%02x/0x%02x", b[1], b[0]) })},
	"ttl":       {revision(0, 2, func(p *printer, b blob) { printTTL(p, "ttl", b) })},
	"u32":       {revision(0, 1982, printU32)},
	"udp":       {revision(0, 9, func(p *printer, b blob) { printPorts(p, b, b[8]) })},
}

var (
	rpfilterFlags = []flag{{1, " --loose"}, {2, " --validmark"}, {4, " --accept-local"}, {8, " --invert"}}
	socketFlags   = []flag{{1, " --transparent"}, {2, " --nowildcard"}, {4, " --restore-skmark"}}
	addrTypes     = []flag{
		{1 << 0, "UNSPEC"}, {1 << 1, "UNICAST"}, {1 << 2, "LOCAL"}, {1 << 3, "BROADCAST"}, {1 << 4, "ANYCAST"}, {1 << 5, "MULTICAST"},
		{1 << 6, "BLACKHOLE"}, {1 << 7, "UNREACHABLE"}, {1 << 8, "PROHIBIT"}, {1 << 9, "THROW"},
		{1 << 10, "NAT"}, {1 << 11, "XRESOLVE"},
	}
	packetTypes = []string{"unicast", "broadcast", "multicast", "otherhost"}
)

func printNfacct(p *printer, b blob) {
	p.say(" --nfacct-name ")
	p.quote(b.string(0, 32))
}

func printSocket(p *printer, b blob) { p.sayIf(uint32(b[0]), socketFlags) }

func printMark(p *printer, b blob) {
	p.not(b[8] != 0)
	p.say(" --mark")
	p.marked(b.u32(0), b.u32(4))
}

func printOwner(p *printer, b blob) {
	match, inverted := b[16], b[17]
	for _, o := range []struct {
		bit    byte
		option string
		at     int // of the two numbers, if there are any
	}{{4, " --socket-exists", -1}, {1, " --uid-owner ", 0}, {2, " --gid-owner ", 8}, {8, " --suppl-groups", -1}} {
		if match&o.bit == 0 {
			continue
		}
		p.not(inverted&o.bit != 0)
		p.say(o.option)
		if o.at >= 0 {
			p.span(b.u32(o.at), b.u32(o.at+4), "-")
		}
	}
	p.doubt(match&^15 != 0)
}

func printAddrtype0(p *printer, b blob) {
	p.addrType(" --src-type ", b.u16(0), b.u32(4) != 0)
	p.addrType(" --dst-type ", b.u16(2), b.u32(8) != 0)
}

func printAddrtype(p *printer, b blob) {
	flags := b.u32(4)
	p.addrType(" --src-type ", b.u16(0), flags&1 != 0)
	p.addrType(" --dst-type ", b.u16(2), flags&2 != 0)
	p.sayIf(flags&^3, []flag{{4, " --limit-iface-in"}, {8, " --limit-iface-out"}})
}

func (p *printer) addrType(option string, types uint32, not bool) {
	if types != 0 {
		p.not(not)
		p.say(option)
		p.sayList(types, addrTypes)
	}
}

func printStatistic(p *printer, b blob) {
	not := ""
	if b.u16(2)&1 != 0 {
		not = " !"
	}
	switch b.u16(0) {
	case 0:
		p.sayf(" --mode random%s --probability %.11f", not, float64(b.u32(4))/(1<<31))
	case 1:
		p.sayf(" --mode nth%s --every %d --packet %d", not, b.u32(4)+1, b.u32(8))
	default:
		p.unknown = true
	}
}

func printPhysdev(p *printer, b blob) {
	inverted, match := b[64], b[65]
	for _, o := range []struct {
		bit    byte
		option string
		at     int // of the name, if there is one
	}{
		{8, " --physdev-is-in", -1}, {1, " --physdev-in ", 0},
		{16, " --physdev-is-out", -1}, {2, " --physdev-out ", 32},
		{4, " --physdev-is-bridged", -1},
	} {
		if match&o.bit == 0 {
			continue
		}
		p.not(inverted&o.bit != 0)
		p.say(o.option)
		if o.at >= 0 {
			p.say(b.string(o.at, 16))
		}
	}
	p.doubt(match&^31 != 0)
}

func printMAC(p *printer, b blob) {
	p.not(b.u32(8) != 0)
	p.sayf(" --mac-source %02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
}

func printPkttype(p *printer, b blob) {
	p.not(b.u32(4) != 0)
	p.say(" --pkt-type ")
	p.sayNth(packetTypes, int(b.u32(0)))
}

func printIPRange(p *printer, b blob) {
	flags := b[64]
	for i, option := range []string{" --src-range ", " --dst-range "} {
		if flags&(1<<i) == 0 {
			continue
		}
		p.not(flags&(16<<i) != 0)
		p.say(option)
		p.addr(b[32*i:])
		p.say("-")
		p.addr(b[32*i+16:])
	}
}

func printLength(p *printer, option string, b blob) {
	p.not(b[4] != 0)
	p.say(option)
	p.span(b.u16(0), b.u16(2), ":")
}

func printTTL(p *printer, name string, b blob) {
	p.sayNth([]string{" --" + name + "-eq ", " ! --" + name + "-eq ", " --" + name + "-lt ", " --" + name + "-gt "}, int(b[0]))
	p.sayf("%d", b[1])
}

func printESP(p *printer, b blob) { printSPIs(p, " --espspi ", b) }
func printAH(p *printer, b blob)  { printSPIs(p, " --ahspi ", b) }

func printSPIs(p *printer, option string, b blob) {
	if b.u32(0) == 0 && b.u32(4) == 1<<32-1 {
		p.doubt(b[8]&1 != 0)
		return
	}
	p.not(b[8]&1 != 0)
	p.say(option)
	p.span(b.u32(0), b.u32(4), ":")
}

func printConnbytes(p *printer, b blob) {
	from, to := b.u64(0), b.u64(8)
	p.not(from > to)
	from, to = min(from, to), max(from, to)
	p.sayf(" --connbytes %d", from)
	if to != 0 && to < 1<<64-1 {
		p.sayf(":%d", to)
	}
	p.say(" --connbytes-mode ")
	p.sayNth([]string{"packets", "bytes", "avgpkt"}, int(b[16]))
	p.say(" --connbytes-dir ")
	p.sayNth([]string{"original", "reply", "both"}, int(b[17]))
}

func printConnlimit0(p *printer, b blob) {
	option := " --connlimit-above"
	if b.u32(20)&1 != 0 {
		option = " --connlimit-upto"
	}
	length, ok := maskLength(b[:p.addrSize()])
	p.doubt(!ok)
	p.sayf("%s %d --connlimit-mask %d", option, b.u32(16), length)
}

func printConnlimit(p *printer, b blob) {
	printConnlimit0(p, b)
	if b.u32(20)&2 != 0 {
		p.say(" --connlimit-daddr")
	} else {
		p.say(" --connlimit-saddr")
	}
}

func printRecent(p *printer, b blob) {
	check, name, side := b[8], b.string(10, 200), b[210]
	p.recentBegin(b, check)
	p.say(" --name " + name)
	p.recentSide(side)
}

func printRecent1(p *printer, b blob) {
	p.recentBegin(b, b[8])
	p.say(" --name " + b.string(10, 200) + " --mask ")
	p.addr(b[212:])
	p.recentSide(b[210])
}

func (p *printer) recentBegin(b blob, check byte) {
	p.not(b[9] != 0)
	p.sayIf(uint32(check)&^(16|32), []flag{{2, " --set"}, {1, " --rcheck"}, {4, " --update"}, {8, " --remove"}})
	if seconds := b.u32(0); seconds != 0 {
		p.sayf(" --seconds %d", seconds)
	}
	p.sayIf(uint32(check)&32, []flag{{32, " --reap"}})
	if hits := b.u32(4); hits != 0 {
		p.sayf(" --hitcount %d", hits)
	}
	p.sayIf(uint32(check)&16, []flag{{16, " --rttl"}})
}

func (p *printer) recentSide(side byte) { p.sayNth([]string{" --rsource", " --rdest"}, int(side)) }

func printString(p *printer, b blob) {
	size := int(b[148])
	if size > 128 || size == 0 {
		p.unknown = true
		return
	}
	pattern, flags := string(b[20:20+size]), b[149]
	p.doubt(flags&^3 != 0)
	p.not(flags&1 != 0)
	if strings.ContainsFunc(pattern, func(r rune) bool { return r < ' ' || r > '~' }) || strings.HasSuffix(pattern, `\`) {
		p.sayf(` --hex-string "|%x|"`, pattern)
	} else {
		p.say(` --string "` + strings.NewReplacer(`"`, `\"`, `\`, `\\`).Replace(pattern) + `"`)
	}
	p.say(" --algo " + b.string(4, 16))
	if from := b.u16(0); from != 0 {
		p.sayf(" --from %d", from)
	}
	if to := b.u16(2); to != 0xffff {
		p.sayf(" --to %d", to)
	}
	if flags&2 != 0 {
		p.say(" --icase")
	}
}

const day = 24 * 60 * 60

func printTime(p *printer, b blob) {
	start, stop, days, weekdays, flags := b.u32(8), b.u32(12), b.u32(16), b[20], b[21]
	if start != 0 || stop != day-1 {
		p.say(" --timestart " + clock(start) + " --timestop " + clock(stop))
	}
	if days != 0xfffffffe {
		p.say(" --monthdays ")
		p.sayList(days&^1, monthdayNames)
	}
	if weekdays != 0xfe {
		p.say(" --weekdays ")
		p.sayList(uint32(weekdays), weekdayNames)
	}
	for i, option := range []string{" --datestart ", " --datestop "} {
		if date := b.u32(4 * i); date != 0 {
			p.say(option + time.Unix(int64(date), 0).UTC().Format("2006-01-02T15:04:05"))
		}
	}
	p.sayIf(uint32(flags), []flag{{1, " --kerneltz"}, {2, " --contiguous"}})
}

// monthdayNames are the days of a month.
var monthdayNames = func() (names []flag) {
	for i := 1; i <= 31; i++ {
		names = append(names, flag{1 << i, strconv.Itoa(i)})
	}
	return names
}()

var weekdayNames = []flag{{2, "Mon"}, {4, "Tue"}, {8, "Wed"}, {16, "Thu"}, {32, "Fri"}, {64, "Sat"}, {128, "Sun"}}

func clock(seconds uint32) string {
	return time.Unix(int64(seconds), 0).UTC().Format("15:04:05")
}
