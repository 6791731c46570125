package nft

import (
	"bytes"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Print prints a rule's expressions in nft's language. A rule that was made here and the same rule as the kernel lists it
// read alike. Expressions that no rule of detour's has are put in square brackets. elements returns what an anonymous set
// holds, or "" to print its name.
func Print(code []byte, elements func(set string, id uint32) string) string {
	p := printer{elements: elements}
	Expressions(code, func(name string, f *netlink.Fields) {
		if !p.expression(name, f) {
			p.say("[" + name + "]")
		}
	})
	return strings.Join(p.words, " ")
}

type printer struct {
	elements  func(set string, id uint32) string
	words     []string // statements
	registers [unix.NFT_REG_2 + 1]operand
}

// operand is what a register holds: what an expression has loaded, or a value.
type operand struct {
	*Source
	words  string
	loaded int // bytes
	mask   []byte
	value  []byte
}

func (p *printer) say(words string) { p.words = append(p.words, words) }

// register returns an operand that is always empty for registers that detour doesn't use.
func (p *printer) register(number uint32) *operand {
	if number > unix.NFT_REG_2 {
		number = unix.NFT_REG_VERDICT
	}
	return &p.registers[number]
}

// expression reports whether the expression is of a kind that detour's rules have.
func (p *printer) expression(name string, f *netlink.Fields) bool {
	switch name {
	case "meta", CT:
		sreg := unix.NFTA_META_SREG
		if name == CT {
			sreg = unix.NFTA_CT_SREG
		}
		s := findSource(name, f.Number(unix.NFTA_META_KEY))
		if f[sreg] == nil {
			return s != nil && p.load(s, f.Number(unix.NFTA_META_DREG), s.Size)
		}
		return p.store(s, p.register(f.Number(sreg)))
	case Payload:
		s := findSource(Payload, f.Number(unix.NFTA_PAYLOAD_BASE)<<8|f.Number(unix.NFTA_PAYLOAD_OFFSET))
		return p.load(s, f.Number(unix.NFTA_PAYLOAD_DREG), int(f.Number(unix.NFTA_PAYLOAD_LEN)))
	case "bitwise":
		o := p.register(f.Number(unix.NFTA_BITWISE_SREG))
		o.mask = Value(f[unix.NFTA_BITWISE_MASK])
		return o.Source != nil && len(o.mask) == o.Size && o.loaded == o.Size && isZero(Value(f[unix.NFTA_BITWISE_XOR]))
	case "cmp":
		return p.compare(p.register(f.Number(unix.NFTA_CMP_SREG)), f.Number(unix.NFTA_CMP_OP), Value(f[unix.NFTA_CMP_DATA]))
	case "lookup":
		return p.lookup(p.register(f.Number(unix.NFTA_LOOKUP_SREG)), f)
	case "immediate":
		return p.immediate(f)
	case "redir":
		to := p.register(f.Number(unix.NFTA_REDIR_REG_PROTO_MIN))
		return p.translate("redirect to", nil, to, f.Number(unix.NFTA_REDIR_FLAGS))
	case "nat":
		return p.dnat(f)
	case "tproxy":
		return p.translate("tproxy"+familyWord(f.Number(TProxyFamily))+" to", nil, p.register(f.Number(TProxyRegPort)), 0)
	case "dynset":
		return p.addElement(p.register(f.Number(unix.NFTA_DYNSET_SREG_KEY)), f)
	}
	return false
}

// load leaves out what nft leaves out: the family ahead of an address, and the protocol ahead of a port.
func (p *printer) load(s *Source, register uint32, size int) bool {
	if s == nil || size > s.Size {
		return false
	}
	words := s.words
	if n := len(p.words); s.Expression == Payload && n > 0 {
		before := p.words[n-1]
		protocol, found := strings.CutPrefix(before, "meta l4proto ")
		switch {
		case s.Datatype == &Port && (found && !strings.ContainsAny(protocol, "!{ ")):
			words = protocol + strings.TrimPrefix(words, "th")
			p.words = p.words[:n-1]
		case s.Datatype == &IPv4Addr && before == "meta nfproto ipv4", s.Datatype == &IPv6Addr && before == "meta nfproto ipv6":
			p.words = p.words[:n-1]
		}
	}
	*p.register(register) = operand{Source: s, words: words, loaded: size}
	return true
}

func (p *printer) store(s *Source, from *operand) bool {
	switch {
	case s == nil:
		return false
	case from.Source != nil && from.mask == nil:
		p.say(s.words + " set " + from.words)
	case len(from.value) == s.Size:
		p.say(s.words + " set " + s.Format(from.value))
	default:
		return false
	}
	return true
}

func (p *printer) compare(o *operand, op uint32, with []byte) bool {
	if o.Source == nil || len(with) != o.loaded {
		return false
	}
	if o.Datatype == &state && o.mask != nil && op == unix.NFT_CMP_NEQ && isZero(with) {
		p.say(o.words + " " + o.Format(o.mask))
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

// prefix prints what is compared with: a value, or a prefix if there is a mask or only a part is loaded.
func (o *operand) prefix(with []byte) (words string, ok bool) {
	length, ok := 8*len(with), o.mask == nil
	if o.mask != nil {
		length, ok = maskLength(o.mask)
	}
	whole := append(bytes.Clone(with), make([]byte, o.Size-len(with))...)
	if length == 8*len(whole) {
		return o.Format(whole), ok
	}
	return o.Format(whole) + "/" + strconv.Itoa(length), ok && o.Prefixes
}

// maskLength is how many leading bits a mask keeps, if it keeps no others.
func maskLength(mask []byte) (length int, ok bool) {
	for length < 8*len(mask) && mask[length/8]>>(7-length%8)&1 == 1 {
		length++
	}
	for i := length; i < 8*len(mask); i++ {
		if mask[i/8]>>(7-i%8)&1 == 1 {
			return 0, false
		}
	}
	return length, true
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func (o *operand) masked() string { return o.words + " & " + o.Format(o.mask) }

func (p *printer) lookup(o *operand, f *netlink.Fields) bool {
	if o.Source == nil || f[unix.NFTA_LOOKUP_DREG] != nil {
		return false
	}
	words := o.words
	if o.mask != nil {
		words = o.masked() + " =="
	}
	if f.Number(unix.NFTA_LOOKUP_FLAGS) != 0 {
		words += " !="
	}
	name, id := f.Text(unix.NFTA_LOOKUP_SET), f.Number(unix.NFTA_LOOKUP_SET_ID)
	if list := p.elements(name, id); list != "" {
		p.say(words + " " + list)
	} else {
		p.say(words + " @" + name)
	}
	return true
}

func (p *printer) immediate(f *netlink.Fields) bool {
	if register := f.Number(unix.NFTA_IMMEDIATE_DREG); register != unix.NFT_REG_VERDICT {
		*p.register(register) = operand{value: Value(f[unix.NFTA_IMMEDIATE_DATA])}
		return true
	}
	if chain, code := Verdict(f); code == Jump {
		p.say("jump " + chain)
	} else {
		p.say(NameOf(Verdicts, code))
	}
	return true
}

// knownNAT are the flags that tell whether there is an address and a port (NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED).
const knownNAT = 3

// translate prints a new destination: an address, a port or both.
func (p *printer) translate(verb string, addr, number *operand, flags uint32) bool {
	if flags&^knownNAT != 0 || addr == nil && number == nil || number != nil && len(number.value) != Port.Size {
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

func (p *printer) dnat(f *netlink.Fields) bool {
	verb := "dnat" + familyWord(f.Number(unix.NFTA_NAT_FAMILY)) + " to"
	if f.Number(unix.NFTA_NAT_TYPE) != unix.NFT_NAT_DNAT || f[unix.NFTA_NAT_REG_ADDR_MIN] == nil {
		return false
	}
	var number *operand
	if f[unix.NFTA_NAT_REG_PROTO_MIN] != nil {
		number = p.register(f.Number(unix.NFTA_NAT_REG_PROTO_MIN))
	}
	return p.translate(verb, p.register(f.Number(unix.NFTA_NAT_REG_ADDR_MIN)), number, f.Number(unix.NFTA_NAT_FLAGS))
}

// familyWord is what a statement for one family says.
func familyWord(protocol uint32) string {
	switch protocol {
	case unix.NFPROTO_IPV4:
		return " ip"
	case unix.NFPROTO_IPV6:
		return " ip6"
	}
	return ""
}

func (p *printer) addElement(o *operand, f *netlink.Fields) bool {
	if o.Source == nil || o.mask == nil || f.Number(unix.NFTA_DYNSET_OP) != unix.NFT_DYNSET_OP_ADD || f[unix.NFTA_DYNSET_EXPR] != nil {
		return false
	}
	p.say("add @" + f.Text(unix.NFTA_DYNSET_SET_NAME) + " { " + o.masked() + " }")
	return true
}
