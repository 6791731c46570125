package xtables

import (
	"github.com/detour-cni/detour/pkg/legacy"
	"github.com/detour-cni/detour/pkg/rules"
)

// The blobs of match set and target SET begin with struct xt_set_info: the set's number, how many parts of the packet are
// looked up, and flags.
var ipset = []decoder{
	revision(1, 4, printSet),
	revision(2, 4, printSet2),
	revision(3, 44, func(p *printer, b blob) { printSet3(p, b, counter{b[8], b.u64(16)}, counter{b[24], b.u64(32)}) }),
	revision(4, 44, func(p *printer, b blob) { printSet3(p, b, counter{b[16], b.u64(8)}, counter{b[32], b.u64(24)}) }),
}

var ipsetTarget = []decoder{
	revision(1, 8, func(p *printer, b blob) { p.setOption(" --add-set ", b); p.setOption(" --del-set ", b[4:]) }),
	revision(2, 16, func(p *printer, b blob) {
		p.addSet(b, b.u32(8), b.u32(12))
		p.setOption(" --del-set ", b[4:])
		p.doubt(b.u32(8)&^setExist != 0)
	}),
	revision(3, 20, func(p *printer, b blob) {
		p.addSet(b, b.u32(12), b.u32(16))
		p.setOption(" --del-set ", b[4:])
		p.setOption(" --map-set ", b[8:])
		p.sayIf(b.u32(12)&^setExist, []flag{{1 << 8, " --map-mark"}, {1 << 9, " --map-prio"}, {1 << 10, " --map-queue"}})
	}),
}

// noSet is the number of no set (IPSET_INVALID_ID), mostParts IPSET_DIM_MAX, setExist IPSET_FLAG_EXIST, and returnNomatch
// IPSET_RETURN_NOMATCH.
const (
	noSet         = 65535
	mostParts     = 6
	setExist      = 1
	returnNomatch = 1 << 7
)

func printSet(p *printer, b blob) {
	p.not(b[3]&1 != 0)
	p.setOption(" --match-set ", b)
}

func printSet2(p *printer, b blob) {
	printSet(p, b)
	if b[3]&returnNomatch != 0 {
		p.say(" --return-nomatch")
	}
}

// counter is struct ip_set_counter_match: how to compare a counter, and with what.
type counter struct {
	comparison byte
	value      uint64
}

func printSet3(p *printer, b blob, packets, bytes counter) {
	printSet(p, b)
	p.sayIf(b.u32(40)&^setCounters, setFlags)
	p.counter("packets", packets)
	p.counter("bytes", bytes)
}

// setCounters (IPSET_FLAG_MATCH_COUNTERS) goes without saying.
const setCounters = 1 << 5

var setFlags = []flag{{1 << 7, " --return-nomatch"}, {1 << 3, " ! --update-counters"}, {1 << 4, " ! --update-subcounters"}}

func (p *printer) counter(name string, c counter) {
	if c.comparison != 0 {
		option := " --" + name
		p.sayNth([]string{"", option + "-eq ", " !" + option + "-eq ", option + "-lt ", option + "-gt "}, int(c.comparison))
		p.sayf("%d", c.value)
	}
}

// setOption prints an option with a set, unless it has none.
func (p *printer) setOption(option string, b blob) {
	index, parts := uint16(b.u16(0)), int(b[2])
	if index == noSet {
		return
	}
	name, ok := p.setName(index)
	p.doubt(!ok || parts > mostParts)
	p.say(option + name)
	between := " "
	for i := 1; i <= min(parts, mostParts); i++ {
		p.say(between)
		if b[3]&(1<<i) != 0 {
			p.say("src")
		} else {
			p.say("dst")
		}
		between = ","
	}
}

func (p *printer) addSet(b blob, flags, timeout uint32) {
	p.setOption(" --add-set ", b)
	if flags&setExist != 0 {
		p.say(" --exist")
	}
	if timeout != 1<<32-1 {
		p.sayf(" --timeout %d", timeout)
	}
}

// setNames returns a function that asks the kernel for the names of ipset's sets, each once.
func setNames() func(uint16) (string, bool) {
	known := map[uint16]string{}
	return func(index uint16) (string, bool) {
		if _, asked := known[index]; !asked {
			known[index] = askSetName(index)
		}
		return known[index], known[index] != ""
	}
}

// What linux/netfilter/ipset/ip_set.h has.
const (
	optionIPSet  = 83
	opVersion    = 0x100
	opGetByIndex = 7
	setNameSize  = 32
)

// askSetName returns "" if there is no such set, or no answer.
func askSetName(index uint16) string {
	s, err := legacy.Open(rules.IPv4)
	if err != nil {
		return ""
	}
	defer s.Close()
	request := make(blob, 8+setNameSize) // struct ip_set_req_get_set
	version := request[:8]               // struct ip_set_req_version
	version.put(0, opVersion)
	if s.Get(optionIPSet, version) != nil {
		return ""
	}
	request.put(0, opGetByIndex)
	request.put(8, uint32(index))
	if s.Get(optionIPSet, request) != nil {
		return ""
	}
	return request.string(8, setNameSize)
}
