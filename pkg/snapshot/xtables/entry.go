package xtables

import (
	"errors"
	"fmt"
	"strings"
)

// headSize is the size of struct xt_entry_match and of struct xt_entry_target: size, name and revision.
const headSize = 32

// entry is struct ipt_entry or ip6t_entry: a rule, the head of a chain, or the end of the table.
type entry struct {
	at     int
	all    blob
	target blob // the part with the target
}

// name is the target's; "" if it is a verdict or a jump.
func (e entry) name() string { return e.target.string(2, headSize-3) }

// verdict is that of a target without a name: below 0 a verdict, else where to jump to.
func (e entry) verdict() int { return int(int32(e.target.u32(headSize))) }

// headOf returns the name of the chain of which an entry is the head. The end of the table is named ERROR.
func (e entry) headOf() (chain string, ok bool) {
	if e.name() != "ERROR" {
		return "", false
	}
	return e.target.string(headSize, len(e.target)-headSize), true
}

var errCut = errors.New("the kernel gives an entry that doesn't fit into the table: this kernel's structures are unknown")

// split reads the entries. Those that it returns can be read without further checks.
func (t legacyTable) split() ([]entry, error) {
	var all []entry
	header := t.counters + 16
	for at := 0; at < len(t.entries); {
		b := t.entries[at:]
		if len(b) < header {
			return nil, errCut
		}
		target, next := int(b.u16(t.offsets)), int(b.u16(t.offsets+2))
		if target < header || next < target+headSize || next > len(b) {
			return nil, errCut
		}
		e := entry{at, b[:next], b[target:next]}
		if e.name() == "" && len(e.target) < headSize+4 {
			return nil, errCut
		}
		all = append(all, e)
		at += next
	}
	return all, nil
}

// hookNames are the names of base chains, by hook.
var hookNames = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// legacyChain is a chain. Its last entry is the policy of a base chain, and else the return at its end.
type legacyChain struct {
	name    string
	base    bool
	head    int // the number of the entry with which it begins,
	from    int // and of its first rule
	entries []entry
}

func (c legacyChain) rules() []entry { return c.entries[:len(c.entries)-1] }
func (c legacyChain) last() entry    { return c.entries[len(c.entries)-1] }

// chains puts the entries into chains. Another head follows the last chain: that of the end.
func (t legacyTable) chains(all []entry) ([]legacyChain, error) {
	bases := map[int]string{} // by offset
	for hook, name := range hookNames {
		if t.info.u32(infoHooks)&(1<<hook) != 0 {
			bases[int(t.info.u32(infoEntry+4*hook))] = name
		}
	}
	var chains []legacyChain
	for i, e := range all {
		if name, ok := bases[e.at]; ok {
			chains = append(chains, legacyChain{name: name, base: true, head: i, from: i})
		}
		if name, ok := e.headOf(); ok {
			chains = append(chains, legacyChain{name: name, head: i, from: i + 1})
		}
	}
	end := len(chains) - 1
	if end < 0 || chains[0].head != 0 || chains[end].name != "ERROR" || chains[end].from != len(all) {
		return nil, errCut
	}
	for i := range end {
		c := &chains[i]
		c.entries = all[c.from:chains[i+1].head]
		if len(c.entries) == 0 || c.last().name() != "" {
			return nil, errCut
		}
	}
	return chains[:end], nil
}

// legacyTable prints a table of iptables-legacy-save.
func (p *printer) legacyTable(t legacyTable) error {
	all, err := t.split()
	if err != nil {
		return err
	}
	chains, err := t.chains(all)
	if err != nil {
		return err
	}
	names := map[int]string{} // of chains, by where their rules begin
	p.say("*" + t.name + "\n")
	for _, c := range chains {
		if c.base {
			packets, bytes := t.counted(c.last())
			p.chainHead(c.name, verdicts[c.last().verdict()], packets, bytes)
			continue
		}
		names[c.entries[0].at] = c.name
		p.chainHead(c.name, "-", 0, 0)
	}
	for _, c := range chains {
		for _, e := range c.rules() {
			r := t.rule(e, names)
			p.rule(c.name, &r)
		}
	}
	p.say("COMMIT\n")
	return nil
}

// verdicts are the targets that end a chain, as the kernel counts them: -NF_ACCEPT-1 and so on.
var verdicts = map[int]string{-1: "DROP", -2: "ACCEPT", -4: "QUEUE", -5: "RETURN"}

// The bits of the flags, and of those that invert. The bit for goto differs.
const (
	flagFragment = 1 // of IPv4
	flagTOS      = 2 // of IPv6

	notIn       = 1
	notOut      = 2
	notSource   = 8
	notDest     = 16
	notFragment = 32
	notProtocol = 64
)

// rule reads an entry. names are those of the chains, by where their rules begin.
func (t legacyTable) rule(e entry, names map[int]string) rule {
	b, n := e.all, t.addrSize
	flags, inverted := b[t.flags], b[t.flags+1]
	r := rule{
		source:      network{b[:n], b[2*n : 3*n], inverted&notSource != 0},
		dest:        network{b[n : 2*n], b[3*n : 4*n], inverted&notDest != 0},
		in:          device{deviceName(b[4*n:], b[4*n+32:]), inverted&notIn != 0},
		out:         device{deviceName(b[4*n+16:], b[4*n+48:]), inverted&notOut != 0},
		protocol:    uint8(b.u16(4*n + 64)),
		notProtocol: inverted&notProtocol != 0,
		fragment:    n == 4 && flags&flagFragment != 0,
		notFragment: inverted&notFragment != 0,
		goTo:        flags&t.goTo != 0,
	}
	r.packets, r.bytes = t.counted(e)
	if n == 16 && flags&flagTOS != 0 {
		r.matches = append(r.matches, unknown("tos"))
	}
	r.matches = append(r.matches, matchesOf(b[t.counters+16:len(b)-len(e.target)])...)
	if name := e.name(); name != "" {
		r.target = extension{name, int(e.target[headSize-1]), e.target[headSize:]}
		return r
	}
	switch verdict := e.verdict(); {
	case verdict < 0 && verdicts[verdict] != "":
		r.chain = verdicts[verdict]
	case names[verdict] != "":
		r.chain = names[verdict]
	case verdict != e.at+len(e.all): // which would go on with the next rule
		r.target = unknown(fmt.Sprint("verdict", verdict))
	}
	return r
}

// matchesOf reads the matches between an entry's header and its target. One that doesn't fit stands for those behind it, too.
func matchesOf(b blob) (all []extension) {
	for len(b) > 0 {
		if len(b) < headSize || int(b.u16(0)) < headSize || int(b.u16(0)) > len(b) {
			return append(all, unknown("match"))
		}
		size := int(b.u16(0))
		all = append(all, extension{b.string(2, headSize-3), int(b[headSize-1]), b[headSize:size]})
		b = b[size:]
	}
	return all
}

// deviceName reads a device's name. A mask that ends before the name does stands for names that begin so.
func deviceName(b, mask blob) string {
	const size = 16 // IFNAMSIZ
	masked := strings.IndexByte(string(mask[:size])+"\x00", 0)
	name := b.string(0, masked)
	if masked < size && len(name) == masked && (masked > 0 || b[0] == '+') {
		name += "+"
	}
	return name
}

func (t legacyTable) counted(e entry) (packets, bytes uint64) {
	return e.all.u64(t.counters), e.all.u64(t.counters + 8)
}
