package xtables

import "strings"

// What is longer than most, and met less often.

var cgroup = []decoder{
	revision(0, 8, func(p *printer, b blob) { p.cgroupClass(b.u32(4) != 0, b.u32(0)) }),
	revision(1, 4+4096+4, func(p *printer, b blob) { printCgroup(p, b, b.string(4, 4096), b.u32(4100)) }),
	revision(2, 4+512, func(p *printer, b blob) { printCgroup(p, b, b.string(4, 512), b.u32(4)) }),
}

func printCgroup(p *printer, b blob, path string, class uint32) {
	if b[0] != 0 {
		p.not(b[2] != 0)
		p.say(" --path")
		p.quote(path)
	}
	if b[1] != 0 {
		p.cgroupClass(b[3] != 0, class)
	}
}

func (p *printer) cgroupClass(not bool, class uint32) {
	p.not(not)
	p.sayf(" --cgroup %d", class)
}

// maxInstructions is XT_BPF_MAX_NUM_INSTR.
const maxInstructions = 64

func printBPF0(p *printer, b blob) { p.bytecode(b.u16(0), b[4:516]) }

func printBPF(p *printer, b blob) {
	switch b.u16(0) {
	case 0:
		p.bytecode(b.u16(2), b[8:520])
	case 1:
		p.say(" --object-pinned " + b.string(8, 512))
	default:
		p.unknown = true
	}
}

func (p *printer) bytecode(count uint32, b blob) {
	p.doubt(count > maxInstructions)
	p.sayf(` --bytecode "%d`, count)
	for i := range int(min(count, maxInstructions)) {
		in := b[8*i:]
		p.sayf(",%d %d %d %d", in.u16(0), in[2], in[3], in.u32(4))
	}
	p.say(`"`)
}

// The number of alternatives in a policy, and the sizes of struct xt_policy_elem and struct xt_u32_test.
const (
	maxPolicies = 4
	policySize  = 76
	maxU32      = 11
	u32Size     = 180
)

func printPolicy(p *printer, b blob) {
	flags, count := b.u16(maxPolicies*policySize), b.u16(maxPolicies*policySize+2)
	direction, kind := " --dir out", " --pol ipsec"
	if flags&1 != 0 {
		direction = " --dir in"
	}
	if flags&4 != 0 {
		kind = " --pol none"
	}
	p.say(direction + kind)
	p.sayIf(flags&^7, []flag{{8, " --strict"}})
	p.doubt(count > maxPolicies)
	for i := range int(min(count, maxPolicies)) {
		if i > 0 {
			p.say(" --next")
		}
		p.policy(b[policySize*i:])
	}
}

// ipsecProtocols are those of /etc/protocols that IPsec has.
var ipsecProtocols = map[byte]string{50: "esp", 51: "ah", 108: "ipcomp"}

// policy prints struct xt_policy_elem.
func (p *printer) policy(b blob) {
	match, inverted := b[74], b[75]
	option := func(bit byte, words string) bool {
		if match&bit == 0 {
			return false
		}
		p.not(inverted&bit != 0)
		p.say(words)
		return true
	}
	if option(32, " --reqid") {
		p.sayf(" %d", b.u32(68))
	}
	if option(16, " --spi") {
		p.sayf(" 0x%x", b.u32(64))
	}
	if option(4, " --proto ") {
		if name := ipsecProtocols[b[72]]; name != "" {
			p.say(name)
		} else {
			p.sayf("%d", b[72])
		}
	}
	if option(8, " --mode ") {
		p.sayNth([]string{"transport", "tunnel"}, int(b[73]))
	}
	if option(2, " --tunnel-dst ") {
		p.prefix(b[32:], b[48:])
	}
	if option(1, " --tunnel-src ") {
		p.prefix(b, b[16:])
	}
}

func printU32(p *printer, b blob) {
	count := int(b[maxU32*u32Size])
	p.not(b[maxU32*u32Size+1] != 0)
	p.doubt(count > maxU32)
	var tests []string
	for i := range min(count, maxU32) {
		at := len(p.text)
		p.u32Test(b[u32Size*i:])
		tests = append(tests, string(p.text[at:]))
		p.text = p.text[:at]
	}
	p.say(` --u32 "` + strings.Join(tests, "&&") + `"`)
}

// u32Test prints struct xt_u32_test.
func (p *printer) u32Test(b blob) {
	numbers, values := int(b[176]), int(b[177])
	p.doubt(numbers > maxU32 || values > maxU32 || numbers == 0)
	for i := range min(numbers, maxU32) {
		if i > 0 {
			p.sayNth([]string{"&", "<<", ">>", "@"}, int(b[8*i+4]))
		}
		p.sayf("0x%x", b.u32(8*i))
	}
	p.say("=")
	for i := range min(values, maxU32) {
		if i > 0 {
			p.say(",")
		}
		low, high := b.u32(88+8*i), b.u32(92+8*i)
		p.sayf("0x%x", low)
		if low != high {
			p.sayf(":0x%x", high)
		}
	}
}
