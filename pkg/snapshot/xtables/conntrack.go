package xtables

// The states and statuses of a connection, in the order in which iptables names them.
var (
	conntrackStates = []flag{
		{1, "INVALID"}, {8, "NEW"}, {4, "RELATED"}, {2, "ESTABLISHED"}, {256, "UNTRACKED"}, {64, "SNAT"}, {128, "DNAT"},
	}
	stateStates       = []flag{{1, "INVALID"}, {8, "NEW"}, {4, "RELATED"}, {2, "ESTABLISHED"}, {64, "UNTRACKED"}}
	conntrackStatuses = []flag{{1, "EXPECTED"}, {2, "SEEN_REPLY"}, {4, "ASSURED"}, {8, "CONFIRMED"}}
)

// The flags of struct xt_conntrack_mtinfo3 that have no loop here.
const (
	ctState = 1 << iota
	ctProtocol
	ctAddr      // and the next three
	ctStatus    = 1 << 6
	ctExpires   = 1 << 7
	ctPort      = 1 << 8 // and the next three
	ctDirection = 1 << 12
	ctAlias     = 1 << 13
	ctAll       = 1<<14 - 1
)

var conntrack = []decoder{
	{revisions: []int{3}, size: 162, alias: conntrackName, print: func(p *printer, b blob) {
		printConntrack(p, b, b.u16(150), b.u16(152), func(i int) (low, high uint32) { return b.u16(138 + 2*i), b.u16(154 + 2*i) })
	}},
	{revisions: []int{2}, size: 154, alias: conntrackName, print: func(p *printer, b blob) {
		printConntrack(p, b, b.u16(150), b.u16(152), func(i int) (low, high uint32) { return b.port(138 + 2*i), 0 })
	}},
	{revisions: []int{1}, size: 152, alias: conntrackName, print: func(p *printer, b blob) {
		printConntrack(p, b, uint32(b[150]), uint32(b[151]), func(i int) (low, high uint32) { return b.port(138 + 2*i), 0 })
	}},
}

func conntrackName(b blob) string {
	if b.u16(146)&ctAlias != 0 {
		return "state"
	}
	return "conntrack"
}

// printConntrack prints what all revisions have at the same place, the states and statuses, and each of four ports.
func printConntrack(p *printer, b blob, states, statuses uint32, port func(i int) (low, high uint32)) {
	flags, inverted := b.u16(146), b.u16(148)
	option := func(bit uint32, words string) bool {
		if flags&bit == 0 {
			return false
		}
		p.not(inverted&bit != 0)
		p.say(words)
		return true
	}
	state := " --ctstate "
	if flags&ctAlias != 0 {
		state = " --state "
	}
	if option(ctState, state) {
		p.sayList(states, conntrackStates)
	}
	if option(ctProtocol, " --ctproto") {
		p.sayf(" %d", b.u16(136))
	}
	for i, words := range []string{" --ctorigsrc ", " --ctorigdst ", " --ctreplsrc ", " --ctrepldst "} {
		if option(ctAddr<<i, words) {
			p.prefix(b[32*i:], b[32*i+16:])
		}
	}
	for i, words := range []string{" --ctorigsrcport ", " --ctorigdstport ", " --ctreplsrcport ", " --ctrepldstport "} {
		if option(ctPort<<i, words) {
			low, high := port(i)
			if high == 0 {
				high = low
			}
			p.span(low, high, ":")
		}
	}
	if option(ctStatus, " --ctstatus ") {
		if statuses == 0 {
			p.say("NONE")
		}
		p.sayList(statuses, conntrackStatuses)
	}
	if option(ctExpires, " --ctexpire ") {
		p.span(b.u32(128), b.u32(132), ":")
	}
	if flags&ctDirection != 0 {
		direction := " --ctdir ORIGINAL"
		if inverted&ctDirection != 0 {
			direction = " --ctdir REPLY"
		}
		p.say(direction)
	}
	p.doubt(flags&^ctAll != 0)
}
