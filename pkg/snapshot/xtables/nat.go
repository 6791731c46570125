package xtables

import (
	"bytes"

	"github.com/detour-cni/detour/pkg/rules"
)

// natRange is struct nf_nat_range2, of which struct nf_nat_range has all but the last, and struct nf_nat_ipv4_range short
// addresses.
type natRange struct {
	flags            uint32
	minAddr, maxAddr blob
	minPort, maxPort uint32
	base             uint32
}

// The flags of a range (NF_NAT_RANGE_...).
const (
	natAddr = 1 << iota
	natPort
	natRandom
	natPersistent
	natRandomFully
	natOffset
)

// nat decodes a target that translates addresses. option introduces the addresses and ports.
func nat(option string) []decoder {
	return []decoder{
		revision(0, 20, func(p *printer, b blob) { p.nat(option, p.oldRange(b)) }),
		revision(1, 40, func(p *printer, b blob) { p.nat(option, readRange(b)) }),
		revision(2, 42, func(p *printer, b blob) {
			r := readRange(b)
			r.base = b.port(40)
			p.nat(option, r)
		}),
	}
}

func readRange(b blob) natRange {
	return natRange{flags: b.u32(0), minAddr: b[4:20], maxAddr: b[20:36], minPort: b.port(36), maxPort: b.port(38)}
}

// oldRange reads a target of revision 0, which has struct nf_nat_ipv4_multi_range_compat for IPv4.
func (p *printer) oldRange(b blob) natRange {
	switch {
	case p.family == rules.IPv4:
		p.doubt(b.u32(0) != 1) // it has several ranges
		return natRange{flags: b.u32(4), minAddr: b[8:12], maxAddr: b[12:16], minPort: b.port(16), maxPort: b.port(18)}
	case len(b) < 40:
		p.unknown = true
		return natRange{}
	}
	return readRange(b)
}

func (p *printer) nat(option string, r natRange) {
	flags := r.flags
	if flags&(natAddr|natPort) != 0 {
		p.say(" " + option)
	}
	brackets := p.family == rules.IPv6 && flags&natPort != 0
	if flags&natAddr != 0 {
		p.sayIfTrue(brackets, "[")
		p.addr(r.minAddr)
		if !bytes.Equal(r.minAddr, r.maxAddr) {
			p.say("-")
			p.addr(r.maxAddr)
		}
		p.sayIfTrue(brackets, "]")
	}
	if flags&natPort != 0 {
		p.sayIfTrue(option != portsOption, ":")
		p.span(r.minPort, r.maxPort, "-")
		if flags&natOffset != 0 {
			p.sayf("/%d", r.base)
		}
	}
	p.sayIf(flags&^(natAddr|natPort|natOffset), natFlags)
}

var natFlags = []flag{{natRandom, " --random"}, {natRandomFully, " --random-fully"}, {natPersistent, " --persistent"}}

// portsOption introduces ports without a colon.
const portsOption = "--to-ports "

func (p *printer) sayIfTrue(condition bool, words string) {
	if condition {
		p.say(words)
	}
}

// printNetmap prints the addresses as a prefix.
func printNetmap(p *printer, b blob) {
	r := p.oldRange(b)
	if p.unknown {
		return
	}
	size := p.addrSize()
	mask := make(blob, size)
	for i := range mask {
		mask[i] = ^(r.minAddr[i] ^ r.maxAddr[i])
	}
	p.say(" --to ")
	p.addr(r.minAddr)
	if length, ok := maskLength(mask); ok {
		p.sayf("/%d", length)
	} else {
		p.say("/" + formatAddr(mask))
	}
}
