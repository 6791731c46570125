package xtables

import (
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/legacy"
)

// headSize is the size of struct xt_entry_match, as of the target's.
const headSize = legacy.TargetSize

// hookNames are the names of base chains, by hook.
var hookNames = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// legacyChain is a chain. Its last entry is the policy of a base chain, and else the return at its end.
type legacyChain struct {
	name    string
	base    bool
	head    int // the number of the entry with which it begins,
	from    int // and of its first rule
	entries []legacy.Entry
}

func (c legacyChain) rules() []legacy.Entry { return c.entries[:len(c.entries)-1] }
func (c legacyChain) last() legacy.Entry    { return c.entries[len(c.entries)-1] }

// chainsOf puts the entries into chains. Another head follows the last chain: that of the end.
func chainsOf(t legacy.Table, all []legacy.Entry) ([]legacyChain, error) {
	bases := map[int]string{} // by offset
	for hook, name := range hookNames {
		if t.ValidHooks&(1<<hook) != 0 {
			bases[int(t.Entry[hook])] = name
		}
	}
	var chains []legacyChain
	for i, e := range all {
		if name, ok := bases[e.At]; ok {
			chains = append(chains, legacyChain{name: name, base: true, head: i, from: i})
		}
		if name, ok := e.Head(); ok {
			chains = append(chains, legacyChain{name: name, head: i, from: i + 1})
		}
	}
	end := len(chains) - 1
	if end < 0 || chains[0].head != 0 || chains[end].name != "ERROR" || chains[end].from != len(all) {
		return nil, legacy.ErrCut
	}
	for i := range end {
		c := &chains[i]
		c.entries = all[c.from:chains[i+1].head]
		if len(c.entries) == 0 || c.last().Name() != "" {
			return nil, legacy.ErrCut
		}
	}
	return chains[:end], nil
}

// legacyTable prints a table of iptables-legacy-save.
func (p *printer) legacyTable(t legacy.Table) error {
	all, err := t.Split()
	if err != nil {
		return err
	}
	chains, err := chainsOf(t, all)
	if err != nil {
		return err
	}
	a, names := abiOf(p.family), map[int]string{} // of chains, by where their rules begin
	p.say("*" + t.Name + "\n")
	for _, c := range chains {
		if c.base {
			packets, bytes := a.counted(c.last())
			p.chainHead(c.name, verdicts[c.last().Verdict()], packets, bytes)
			continue
		}
		names[c.entries[0].At] = c.name
		p.chainHead(c.name, "-", 0, 0)
	}
	for _, c := range chains {
		for _, e := range c.rules() {
			r := a.rule(e, names)
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
func (a abi) rule(e legacy.Entry, names map[int]string) rule {
	b, n := blob(e.All), a.addrSize
	flags, inverted := b[a.flags], b[a.flags+1]
	r := rule{
		source:      network{b[:n], b[2*n : 3*n], inverted&notSource != 0},
		dest:        network{b[n : 2*n], b[3*n : 4*n], inverted&notDest != 0},
		in:          device{deviceName(b[4*n:], b[4*n+32:]), inverted&notIn != 0},
		out:         device{deviceName(b[4*n+16:], b[4*n+48:]), inverted&notOut != 0},
		protocol:    uint8(b.u16(4*n + 64)),
		notProtocol: inverted&notProtocol != 0,
		fragment:    n == 4 && flags&flagFragment != 0,
		notFragment: inverted&notFragment != 0,
		goTo:        flags&a.goTo != 0,
	}
	r.packets, r.bytes = a.counted(e)
	if n == 16 && flags&flagTOS != 0 {
		r.matches = append(r.matches, unknown("tos"))
	}
	r.matches = append(r.matches, matchesOf(b[a.counters+16:len(b)-len(e.Target)])...)
	if name := e.Name(); name != "" {
		r.target = extension{name, int(e.Target[headSize-1]), e.Target[headSize:]}
		return r
	}
	switch verdict := e.Verdict(); {
	case verdict < 0 && verdicts[verdict] != "":
		r.chain = verdicts[verdict]
	case names[verdict] != "":
		r.chain = names[verdict]
	case verdict != e.At+len(e.All): // which would go on with the next rule
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

func (a abi) counted(e legacy.Entry) (packets, bytes uint64) {
	return blob(e.All).u64(a.counters), blob(e.All).u64(a.counters + 8)
}
