package xtables

import (
	"slices"
	"strconv"
	"strings"
)

// rule is a rule in the terms of iptables. Its slices may refer to what was read from the kernel.
type rule struct {
	packets, bytes uint64
	source, dest   network
	in, out        device
	protocol       uint8 // 0 if any
	notProtocol    bool
	fragment       bool
	notFragment    bool
	matches        []extension
	target         extension // if it has a name
	chain          string    // otherwise: the verdict, or the chain to jump to; "" if there is none
	goTo           bool
}

type network struct {
	addr, mask blob // nil if any
	not        bool
}

type device struct {
	name string // "" if any; at its end + stands for anything
	not  bool
}

// extension is a match or a target, as the kernel's module has it.
type extension struct {
	name     string
	revision int
	info     blob
}

// unknown is a condition or statement of nf_tables that iptables has no words for.
func unknown(name string) extension { return extension{name: name, revision: -1} }

// protocols are those that iptables names itself. Versions before 1.8.10 look up others in /etc/protocols.
var protocols = map[uint8]string{
	1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 50: "esp", 51: "ah", 58: "ipv6-icmp", 108: "ipcomp",
	132: "sctp", 135: "mobility-header", 136: "udplite",
}

// rule prints a line of iptables-save -c.
func (p *printer) rule(chain string, r *rule) {
	from := len(p.text)
	p.sayf("[%d:%d] -A %s", r.packets, r.bytes, chain)
	p.network(" -s ", r.source)
	p.network(" -d ", r.dest)
	p.device(" -i ", r.in)
	p.device(" -o ", r.out)
	if r.protocol != 0 {
		p.not(r.notProtocol)
		name := protocols[r.protocol]
		if name == "" {
			name = strconv.Itoa(int(r.protocol))
		}
		p.say(" -p " + name)
	}
	if r.fragment {
		p.not(r.notFragment)
		p.say(" -f")
	}
	for _, m := range r.matches {
		p.extension(" -m ", matches, m)
	}
	switch {
	case r.target.name != "":
		p.extension(" -j ", targets, r.target)
	case r.chain != "" && r.goTo:
		p.say(" -g " + r.chain)
	case r.chain != "":
		p.say(" -j " + r.chain)
	}
	p.endLine(from)
}

func (p *printer) network(option string, n network) {
	if n.addr == nil {
		return
	}
	length, ok := maskLength(n.mask)
	if length == 0 && ok && !n.not && (len(n.addr) == 16 || strings.Trim(string(n.addr), "\x00") == "") {
		return
	}
	p.not(n.not)
	p.say(option + formatAddr(n.addr))
	if ok {
		p.sayf("/%d", length)
	} else {
		p.say("/" + formatAddr(n.mask))
	}
}

func (p *printer) device(option string, d device) {
	if d.name != "" && (d.name != "+" || d.not) {
		p.not(d.not)
		p.say(option + d.name)
	}
}

// decoder prints the options of a match or target of some revisions.
type decoder struct {
	revisions []int
	size      int // of what print reads, for certain
	print     func(p *printer, b blob)
	alias     func(b blob) string // the name to print, if it isn't the module's
}

// revision decodes one revision, by print, which reads size bytes or more.
func revision(number, size int, print func(p *printer, b blob)) decoder {
	return decoder{revisions: []int{number}, size: size, print: print}
}

// extension prints a match or target. What it can't print in full gets the option [unknown] only.
func (p *printer) extension(option string, known map[string][]decoder, e extension) {
	name := e.name
	decodes := func(d decoder) bool { return slices.Contains(d.revisions, e.revision) && d.size <= len(e.info) }
	i := slices.IndexFunc(known[e.name], decodes)
	if i < 0 {
		p.say(option + name + placeholder)
		return
	}
	d := known[e.name][i]
	if d.alias != nil {
		name = d.alias(e.info)
	}
	p.say(option + name)
	at := len(p.text)
	p.unknown = false
	d.print(p, e.info)
	if p.unknown {
		p.text = append(p.text[:at], placeholder...)
	}
}

// placeholder stands for the options of a match or target that has no words here.
const placeholder = " [unknown]"

// chainHead prints a chain's line ahead of the rules. The policy is "-" unless it is a base chain.
func (p *printer) chainHead(name, policy string, packets, bytes uint64) {
	from := len(p.text)
	p.sayf(":%s %s [%d:%d]", name, policy, packets, bytes)
	p.endLine(from)
}
