package nftables

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String prints the rule in nft's language: one made here and one that the kernel lists in the same words, so that both can
// be compared. What is in no rule of detour's stands in square brackets.
func (r rule) String() string {
	p := printer{sets: r.sets}
	for a := range decode(r.code) {
		e := parse(a.data)
		name, f := e.text(unix.NFTA_EXPR_NAME), parse(e[unix.NFTA_EXPR_DATA])
		if !p.expression(name, &f) {
			p.say("[" + name + "]")
		}
	}
	if r.why != "" {
		p.say(`comment "` + r.why + `"`)
	}
	return strings.Join(p.words, " ")
}

type printer struct {
	sets      []set
	words     []string // statements
	registers [reg2 + 1]operand
}

// operand is what a register holds: what an expression has loaded, or else a value.
type operand struct {
	*source
	words  string
	loaded int // how many bytes
	mask   []byte
	value  []byte
}

func (p *printer) say(words string) { p.words = append(p.words, words) }

// register is an empty one for those that detour doesn't use.
func (p *printer) register(number uint32) *operand {
	if number > reg2 {
		number = unix.NFT_REG_VERDICT
	}
	return &p.registers[number]
}

// expression reports whether the expression is of a kind that detour's rules have.
func (p *printer) expression(name string, f *fields) bool {
	switch name {
	case "meta", ct:
		sreg := unix.NFTA_META_SREG
		if name == ct {
			sreg = unix.NFTA_CT_SREG
		}
		s := findSource(name, f.number(keyAttribute))
		if f[sreg] == nil {
			return s != nil && p.load(s, f.number(dregAttribute), s.size)
		}
		return p.store(s, p.register(f.number(sreg)))
	case payload:
		s := findSource(payload, f.number(unix.NFTA_PAYLOAD_BASE)<<8|f.number(unix.NFTA_PAYLOAD_OFFSET))
		return p.load(s, f.number(unix.NFTA_PAYLOAD_DREG), int(f.number(unix.NFTA_PAYLOAD_LEN)))
	case "bitwise":
		o := p.register(f.number(unix.NFTA_BITWISE_SREG))
		o.mask = f.value(unix.NFTA_BITWISE_MASK)
		return o.source != nil && len(o.mask) == o.size && o.loaded == o.size && isZero(f.value(unix.NFTA_BITWISE_XOR))
	case "cmp":
		return p.compare(p.register(f.number(unix.NFTA_CMP_SREG)), f.number(unix.NFTA_CMP_OP), f.value(unix.NFTA_CMP_DATA))
	case "lookup":
		return p.lookup(p.register(f.number(unix.NFTA_LOOKUP_SREG)), f)
	case "immediate":
		return p.immediate(f)
	case "redir":
		to := p.register(f.number(unix.NFTA_REDIR_REG_PROTO_MIN))
		return p.translate("redirect to", nil, to, f.number(unix.NFTA_REDIR_FLAGS))
	case "nat":
		return p.dnat(f)
	case "tproxy":
		return p.translate("tproxy"+familyWord(f.number(tproxyFamily))+" to", nil, p.register(f.number(tproxyRegPort)), 0)
	case "dynset":
		return p.arm(p.register(f.number(unix.NFTA_DYNSET_SREG_KEY)), f)
	}
	return false
}

// load leaves out what nft does: the family ahead of an address, and the protocol ahead of a port.
func (p *printer) load(s *source, register uint32, size int) bool {
	if s == nil || size > s.size {
		return false
	}
	words := s.words
	if n := len(p.words); s.expression == payload && n > 0 {
		before := p.words[n-1]
		protocol, found := strings.CutPrefix(before, "meta l4proto ")
		switch {
		case s.datatype == &port && (found && !strings.ContainsAny(protocol, "!{ ")):
			words = protocol + strings.TrimPrefix(words, "th")
			p.words = p.words[:n-1]
		case s.datatype == &ipv4Addr && before == "meta nfproto ipv4", s.datatype == &ipv6Addr && before == "meta nfproto ipv6":
			p.words = p.words[:n-1]
		}
	}
	*p.register(register) = operand{source: s, words: words, loaded: size}
	return true
}

func (p *printer) store(s *source, from *operand) bool {
	switch {
	case s == nil:
		return false
	case from.source != nil && from.mask == nil:
		p.say(s.words + " set " + from.words)
	case len(from.value) == s.size:
		p.say(s.words + " set " + s.format(from.value))
	default:
		return false
	}
	return true
}

func (p *printer) compare(o *operand, op uint32, with []byte) bool {
	if o.source == nil || len(with) != o.loaded {
		return false
	}
	if o.datatype == &state && o.mask != nil && op == unix.NFT_CMP_NEQ && isZero(with) {
		p.say(o.words + " " + o.format(o.mask))
		return true
	}
	right, ok := o.prefix(with)
	before := o.words + " >= "
	switch n := len(p.words); {
	case !ok:
		return false
	case op == unix.NFT_CMP_EQ:
		p.say(o.words + " " + right)
	case op == unix.NFT_CMP_NEQ:
		p.say(o.words + " != " + right)
	case op == unix.NFT_CMP_GTE:
		p.say(before + right)
	case op == unix.NFT_CMP_LTE && n > 0 && strings.HasPrefix(p.words[n-1], before): // a range is two comparisons
		p.words[n-1] = o.words + " " + strings.TrimPrefix(p.words[n-1], before) + "-" + right
	default:
		return false
	}
	return true
}

// prefix prints what is compared with: a value, or of an address a prefix, if there is a mask or not all of it is loaded.
func (o *operand) prefix(with []byte) (words string, ok bool) {
	length, ok := 8*len(with), o.mask == nil
	if o.mask != nil {
		length, ok = o.maskLength(o.mask)
	}
	whole := append(bytes.Clone(with), make([]byte, o.size-len(with))...)
	if length == 8*len(whole) {
		return o.format(whole), ok
	}
	return o.format(whole) + "/" + strconv.Itoa(length), ok && o.prefixes
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func (o *operand) masked() string { return o.words + " & " + o.format(o.mask) }

func (p *printer) lookup(o *operand, f *fields) bool {
	if o.source == nil || f[unix.NFTA_LOOKUP_DREG] != nil {
		return false
	}
	words := o.words
	if o.mask != nil {
		words = o.masked() + " =="
	}
	if f.number(unix.NFTA_LOOKUP_FLAGS) != 0 {
		words += " !="
	}
	name, id := f.text(unix.NFTA_LOOKUP_SET), f.number(unix.NFTA_LOOKUP_SET_ID)
	for _, s := range p.sets {
		if s.name == name && s.id == id && s.of != nil {
			p.say(words + " " + s.String())
			return true
		}
	}
	p.say(words + " @" + name)
	return true
}

// verdicts are those that end a rule.
var verdicts = []named{{"drop", nfDrop}, {"accept", nfAccept}, {"return", returnVerdict}}

func (p *printer) immediate(f *fields) bool {
	data := parse(f[unix.NFTA_IMMEDIATE_DATA])
	if register := f.number(unix.NFTA_IMMEDIATE_DREG); register != unix.NFT_REG_VERDICT {
		*p.register(register) = operand{value: data[unix.NFTA_DATA_VALUE]}
		return true
	}
	verdict := parse(data[unix.NFTA_DATA_VERDICT])
	if code := verdict.number(unix.NFTA_VERDICT_CODE); code == jumpVerdict {
		p.say("jump " + verdict.text(unix.NFTA_VERDICT_CHAIN))
	} else {
		p.say(nameOf(verdicts, code))
	}
	return true
}

// knownNAT are the flags that say which of address and port is there (NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED).
const knownNAT = 3

// translate prints where to; either of address and port may be missing.
func (p *printer) translate(verb string, addr, number *operand, flags uint32) bool {
	if flags&^knownNAT != 0 || addr == nil && number == nil || number != nil && len(number.value) != port.size {
		return false
	}
	to := ""
	if addr != nil {
		to = formatAddr(addr.value)
	}
	if number != nil {
		if strings.Contains(to, ":") {
			to = "[" + to + "]"
		}
		to += ":" + formatPort(number.value)
	}
	p.say(verb + " " + to)
	return true
}

func (p *printer) dnat(f *fields) bool {
	verb := "dnat" + familyWord(f.number(unix.NFTA_NAT_FAMILY)) + " to"
	if f.number(unix.NFTA_NAT_TYPE) != unix.NFT_NAT_DNAT || f[unix.NFTA_NAT_REG_ADDR_MIN] == nil {
		return false
	}
	var number *operand
	if f[unix.NFTA_NAT_REG_PROTO_MIN] != nil {
		number = p.register(f.number(unix.NFTA_NAT_REG_PROTO_MIN))
	}
	return p.translate(verb, p.register(f.number(unix.NFTA_NAT_REG_ADDR_MIN)), number, f.number(unix.NFTA_NAT_FLAGS))
}

// familyWord is what a statement says that is of one family.
func familyWord(protocol uint32) string {
	switch protocol {
	case unix.NFPROTO_IPV4:
		return " ip"
	case unix.NFPROTO_IPV6:
		return " ip6"
	}
	return ""
}

func (p *printer) arm(o *operand, f *fields) bool {
	if o.source == nil || o.mask == nil || f.number(unix.NFTA_DYNSET_OP) != unix.NFT_DYNSET_OP_ADD || f[unix.NFTA_DYNSET_EXPR] != nil {
		return false
	}
	p.say("add @" + f.text(unix.NFTA_DYNSET_SET_NAME) + " { " + o.masked() + " }")
	return true
}
