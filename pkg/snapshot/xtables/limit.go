package xtables

// rates are the units in which iptables prints a rate, with their length in seconds.
var rates = []struct {
	name    string
	seconds uint64
}{{"day", day}, {"hour", 60 * 60}, {"min", 60}, {"sec", 1}}

// rate prints how often a period fits into a unit that makes it a whole number, or almost. It returns the unit in seconds.
func (p *printer) rate(period, scale uint64) (unit uint64) {
	if period == 0 {
		p.say(" inf")
		return 0
	}
	i := 1
	for ; i < len(rates); i++ {
		if all := rates[i].seconds * scale; period > all || all/period < all%period {
			break
		}
	}
	r := rates[i-1]
	p.sayf(" %d/%s", r.seconds*scale/period, r.name)
	return r.seconds
}

// limitScale is the number of a second's parts in which the kernel counts.
const (
	limitScale = 10_000
	hashScale  = 1_000_000
	limitBurst = 5 // is not printed
)

func printLimit(p *printer, b blob) {
	p.say(" --limit")
	p.rate(uint64(b.u32(0)), limitScale)
	if burst := b.u32(4); burst != limitBurst {
		p.sayf(" --limit-burst %d", burst)
	}
}

// hashConfig is struct hashlimit_cfg3.
type hashConfig struct {
	name             string
	average, burst   uint64
	mode             uint32
	table            blob // its size, the most entries, and how often and when they are removed, in milliseconds
	interval         uint32
	srcmask, dstmask byte
	scale            uint64
}

var hashlimit = []decoder{
	revision(1, 46, func(p *printer, b blob) {
		average, burst := uint64(b.u32(20)), uint64(b.u32(24))
		printHashlimit(p, hashConfig{b.string(0, 16), average, burst, b.u32(16), b[28:44], 1, b[44], b[45], limitScale})
	}),
	revision(2, 294, func(p *printer, b blob) {
		printHashlimit(p, hashConfig{b.string(0, 255), b.u64(256), b.u64(264), b.u32(272), b[276:292], 1, b[292], b[293], hashScale})
	}),
	revision(3, 298, func(p *printer, b blob) {
		average, burst, interval := b.u64(256), b.u64(264), b.u32(292)
		printHashlimit(p, hashConfig{b.string(0, 255), average, burst, b.u32(272), b[276:292], interval, b[296], b[297], hashScale})
	}),
}

// The bits of a hashlimit's mode.
const (
	hashInvert = 1 << 4
	hashBytes  = 1 << 5
	hashRate   = 1 << 6
	hashBy     = 1<<4 - 1
	hashAll    = 1<<7 - 1
)

func printHashlimit(p *printer, c hashConfig) {
	if c.mode&hashInvert != 0 {
		p.say(" --hashlimit-above")
	} else {
		p.say(" --hashlimit-upto")
	}
	var seconds uint64 // after which an entry expires, if it isn't said
	if c.mode&hashBytes != 0 {
		seconds = p.byteRate(c.average, c.burst)
	} else {
		seconds = p.rate(c.average, c.scale)
		p.sayf(" --hashlimit-burst %d", c.burst)
	}
	if by := c.mode & hashBy; by != 0 {
		p.say(" --hashlimit-mode ")
		p.sayList(by, []flag{{4, "srcip"}, {8, "srcport"}, {1, "dstip"}, {2, "dstport"}})
	}
	p.say(" --hashlimit-name " + c.name)
	p.numberUnless(0, " --hashlimit-htable-size", c.table.u32(0))
	p.numberUnless(0, " --hashlimit-htable-max", c.table.u32(4))
	p.numberUnless(1000, " --hashlimit-htable-gcinterval", c.table.u32(8))
	p.numberUnless(uint32(seconds*1000), " --hashlimit-htable-expire", c.table.u32(12))
	p.numberUnless(uint32(8*p.addrSize()), " --hashlimit-srcmask", uint32(c.srcmask))
	p.numberUnless(uint32(8*p.addrSize()), " --hashlimit-dstmask", uint32(c.dstmask))
	if c.mode&hashRate != 0 {
		p.say(" --hashlimit-rate-match")
		p.numberUnless(1, " --hashlimit-rate-interval", c.interval)
	}
	p.doubt(c.mode&^hashAll != 0)
}

func (p *printer) numberUnless(usual uint32, option string, n uint32) {
	if n != usual {
		p.sayf("%s %d", option, n)
	}
}

// byteUnits are the units of bytes, the largest first.
var byteUnits = []struct {
	name string
	size uint64
}{{"m", 1 << 20}, {"k", 1 << 10}, {"", 1}}

// The kernel counts in what 16 bytes cost, as a part of 2³².
func costOf(bytes uint64) uint64 { return (1<<32 - 1) / (uint64(uint32(bytes>>4)) + 1) }

func bytesOf(cost uint64) uint64 { return ((1<<32-1)/max(cost, 1) - 1) << 4 }

func (p *printer) byteRate(cost, burst uint64) (seconds uint64) {
	bytes := bytesOf(cost)
	i := 0
	for i < len(byteUnits)-1 && (bytes < byteUnits[i].size || costOf(bytes&^(byteUnits[i].size-1)) != cost) {
		i++
	}
	p.sayf(" %d%sb/s", bytes/byteUnits[i].size, byteUnits[i].name)
	if burst == 0 {
		return 15
	}
	bytes *= burst
	for i = 0; i < len(byteUnits)-1 && bytes < byteUnits[i].size; i++ {
	}
	p.sayf(" --hashlimit-burst %d%sb", bytes/byteUnits[i].size, byteUnits[i].name)
	return 60
}
