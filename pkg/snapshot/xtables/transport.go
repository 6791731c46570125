package xtables

// The matches of transport protocols.

var tcpFlags = []flag{{1, "FIN"}, {2, "SYN"}, {4, "RST"}, {8, "PSH"}, {16, "ACK"}, {32, "URG"}}

// ports prints an option with a range of ports unless it covers all, as tcp and udp do.
func (p *printer) ports(option string, low, high uint32, not bool) {
	if low == 0 && high == 0xffff {
		p.doubt(not) // it matches nothing; iptables has no words for that
		return
	}
	p.not(not)
	p.say(option)
	p.span(low, high, ":")
}

func printPorts(p *printer, b blob, inverted byte) {
	p.ports(" --sport ", b.u16(0), b.u16(2), inverted&1 != 0)
	p.ports(" --dport ", b.u16(4), b.u16(6), inverted&2 != 0)
}

func printTCP(p *printer, b blob) {
	option, mask, compare, inverted := b[8], b[9], b[10], b[11]
	printPorts(p, b, inverted)
	if option != 0 || inverted&8 != 0 {
		p.not(inverted&8 != 0)
		p.sayf(" --tcp-option %d", option)
	}
	if mask != 0 || inverted&4 != 0 {
		p.not(inverted&4 != 0)
		p.say(" --tcp-flags ")
		p.tcpFlags(mask)
		p.say(" ")
		p.tcpFlags(compare)
	}
}

func (p *printer) tcpFlags(f byte) {
	if f == 0 {
		p.say("NONE")
	}
	p.sayList(uint32(f), tcpFlags)
}

// printSCTP doesn't know chunk types.
func printSCTP(p *printer, b blob) {
	flags, inverted := b.u32(284), b.u32(288)
	p.doubt(flags&^3 != 0)
	for i, option := range []string{" --sport ", " --dport "} {
		if at := 4 - 4*i; flags&(1<<i) != 0 {
			p.not(inverted&(1<<i) != 0)
			p.say(option)
			p.span(b.u16(at), b.u16(at+2), ":")
		}
	}
}

func printICMP(p *printer, b blob) {
	p.not(b[3]&1 != 0)
	p.say(" --icmp-type ")
	if b[0] == 0xff {
		p.say("any")
		return
	}
	printICMPCode(p, b)
}

func printICMP6(p *printer, b blob) {
	p.not(b[3]&1 != 0)
	p.say(" --icmpv6-type ")
	printICMPCode(p, b)
}

func printICMPCode(p *printer, b blob) {
	p.sayf("%d", b[0])
	if b[1] != 0 || b[2] != 0xff {
		p.sayf("/%d", b[1])
		p.doubt(b[1] != b[2])
	}
}

var multiportOptions = []string{" --sports ", " --dports ", " --ports "}

func printMultiport0(p *printer, b blob) { printPortList(p, b, make(blob, 15)) }

func printMultiport(p *printer, b blob) {
	p.not(b[47] != 0)
	printPortList(p, b, b[32:47])
}

func printPortList(p *printer, b, begins blob) {
	p.sayNth(multiportOptions, int(b[0]))
	count := int(b[1])
	p.doubt(count > 15)
	for i := 0; i < min(count, 15); i++ {
		if i > 0 {
			p.say(",")
		}
		p.sayf("%d", b.u16(2+2*i))
		if begins[i] != 0 && i+1 < 15 {
			i++
			p.sayf(":%d", b.u16(2+2*i))
		}
	}
}
