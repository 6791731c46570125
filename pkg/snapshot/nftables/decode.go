package nftables

import (
	"encoding/binary"
	"math/big"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nft"
)

// statement is a statement of a rule.
type statement struct {
	op          string // of a match
	left, right operand
	expression  bool              // it has no effect of its own: a match or a verdict map
	resolve     func(*context)    // finds out what the operands are; nil if there are none. A match has none.
	write       func(*writer) any // of all but matches
	gone        bool              // a later statement implies it
}

func (s *statement) json(w *writer) any {
	if s.left == nil {
		return s.write(w)
	}
	return one("match", object{{"op", s.op}, {"left", s.left.json(w)}, {"right", w.as(s.left.form(), s.right)}})
}

// decoder reads the expressions of one rule.
type decoder struct {
	w         *writer
	table     *table
	registers [17]operand // of 32 bits, from 1 on
	out       []*statement
	lacking   bool // an operand was wanted that no known expression has loaded
}

const (
	exprMeta = "meta"
	exprCT   = "ct"
)

// decode returns a rule's statements as nft writes them.
func (w *writer) decode(t *table, code []byte) []any {
	d := decoder{w: w, table: t}
	nft.Expressions(code, d.expression)
	list := []any{}
	for _, s := range simplify(w, t.family, d.out) {
		if !s.gone {
			list = append(list, s.json(w))
		}
	}
	return list
}

// expression says explicitly what it doesn't know. Nobody knows which registers that has changed.
func (d *decoder) expression(name string, f *netlink.Fields) {
	before := len(d.out)
	d.lacking = false
	if read := readers[name]; read == nil || !read(d, f) || d.lacking {
		d.out = d.out[:before]
		d.registers = [17]operand{}
		d.say(one("unknown", name))
	}
}

// readers read an expression each, and report whether they know all of it.
var readers map[string]func(*decoder, *netlink.Fields) bool

func init() {
	readers = map[string]func(*decoder, *netlink.Fields) bool{
		exprMeta: (*decoder).meta, exprCT: (*decoder).ct, nft.Payload: (*decoder).payload, "exthdr": (*decoder).extension,
		"rt": (*decoder).rt, "socket": (*decoder).socket, "fib": (*decoder).fib, "numgen": (*decoder).numgen, "hash": (*decoder).hash,
		"osf": (*decoder).osf, "xfrm": (*decoder).xfrm, "bitwise": (*decoder).bitwise, "byteorder": (*decoder).byteorder,
		"cmp": (*decoder).compare, "range": (*decoder).between, "lookup": (*decoder).lookup, "immediate": (*decoder).immediate,
		"counter": (*decoder).counter, "limit": (*decoder).limit, "quota": (*decoder).quota, "connlimit": (*decoder).connlimit,
		"last": (*decoder).last, "log": (*decoder).log, "reject": (*decoder).reject, "notrack": (*decoder).notrack,
		"nat": (*decoder).nat, "masq": (*decoder).masq, "redir": (*decoder).redir, "tproxy": (*decoder).tproxy, "queue": (*decoder).queue,
		"dup": (*decoder).dup, "fwd": (*decoder).fwd, "dynset": (*decoder).dynset, "objref": (*decoder).objref,
		"flow_offload": (*decoder).flow, "synproxy": (*decoder).synproxy, "match": (*decoder).xtMatch, "target": (*decoder).xtTarget,
	}
}

// slot is the first 32-bit register of a register; 0 if there is none such.
func slot(register uint32) int {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		return 1 + int(register-unix.NFT_REG_1)*4
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		return 1 + int(register-unix.NFT_REG32_00)
	}
	return 0
}

// load puts an operand into the register that an attribute names.
func (d *decoder) load(f *netlink.Fields, attribute int, o operand) bool {
	at := slot(f.Number(attribute))
	if at == 0 || o == nil {
		return false
	}
	d.registers[at] = o
	return true
}

// operand is what the register holds that an attribute names. Expressions change their operands, so each gets its own.
func (d *decoder) operand(f *netlink.Fields, attribute int) operand {
	return d.held(slot(f.Number(attribute)))
}

func (d *decoder) held(at int) operand {
	if at <= 0 || at >= len(d.registers) || d.registers[at] == nil {
		d.lacking = true
		return missing{}
	}
	return clone(d.registers[at])
}

func clone(o operand) operand {
	switch o := o.(type) {
	case *payload:
		p := *o
		return &p
	case *extension:
		e := *o
		return &e
	case *loaded:
		l := *o
		return &l
	case *operation:
		return &operation{o.op, clone(o.left), clone(o.right)}
	case swapped:
		return swapped{clone(o.operand)}
	case concat:
		parts := make(concat, len(o))
		for i, part := range o {
			parts[i] = clone(part)
		}
		return parts
	case *hash:
		return &hash{o.members, clone(o.of)}
	case *mapped:
		in := *o.in
		return &mapped{clone(o.key), &in}
	}
	return o
}

// registerBits is the size of a register. Each part of a concatenation begins a new one.
const registerBits = 32

func padded(bits int) int { return (bits + registerBits - 1) / registerBits * registerBits }

// wide is the operand in a register, or a concatenation if that operand is too short.
func (d *decoder) wide(f *netlink.Fields, attribute, bits int) operand {
	at := slot(f.Number(attribute))
	first := d.held(at)
	if size := first.form().bits; size == 0 || size >= bits {
		return first
	}
	var parts concat
	for bits = min(bits, registerBits*len(d.registers)); bits > 0; {
		part := d.held(at)
		size := max(padded(part.form().bits), registerBits)
		parts = append(parts, part)
		bits -= size
		at += size / registerBits
	}
	return parts
}

// split cuts a constant into the parts of a concatenation.
func (c concat) split(value *constant) operand {
	parts := make(concat, 0, len(c))
	rest := value.raw
	for _, part := range c {
		bits := part.form().bits
		size := min(padded(bits)/8, len(rest))
		used := min((bits+7)/8, size)
		parts = append(parts, &typed{&constant{slices.Clone(rest[:used]), 8 * used}, part.form()})
		rest = rest[size:]
	}
	return parts
}

// typed is a constant that knows its form.
type typed struct {
	*constant
	of form
}

func (t *typed) form() form         { return t.of }
func (t *typed) json(w *writer) any { return w.as(t.of, t.constant) }

func value(data []byte) *constant {
	raw := slices.Clone(nft.Value(data))
	return &constant{raw, 8 * len(raw)}
}

// number64 reads a number of 64 bits; 0 if there is none.
func number64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// number16 and number8 read shorter numbers.
func number16(b []byte) uint32 {
	if len(b) != 2 {
		return 0
	}
	return uint32(binary.BigEndian.Uint16(b))
}

func number8(b []byte) uint32 {
	if len(b) != 1 {
		return 0
	}
	return uint32(b[0])
}

// say adds a statement without operands.
func (d *decoder) say(what any) bool {
	return d.add(&statement{write: func(*writer) any { return what }})
}

func (d *decoder) add(s *statement) bool {
	d.out = append(d.out, s)
	return true
}

func (d *decoder) match(op string, left, right operand) bool {
	return d.add(&statement{op: op, left: left, right: right, expression: true})
}

func (d *decoder) compare(f *netlink.Fields) bool {
	op, known := compareNames[uint64(f.Number(unix.NFTA_CMP_OP))]
	right := value(f[unix.NFTA_CMP_DATA])
	left := d.wide(f, unix.NFTA_CMP_SREG, right.bits)
	if !known || right.bits == 0 {
		return false
	}
	if parts, ok := left.(concat); ok {
		return d.match(op, left, parts.split(right))
	}
	if of := left.form(); of.bits > right.bits && of.kind != text {
		low := newConstant(new(big.Int).Lsh(right.bigEndian(), uint(of.bits-right.bits)), of.bits)
		return d.match(op, left, &span{low: low, length: right.bits})
	}
	return d.match(op, left, right)
}

func (d *decoder) between(f *netlink.Fields) bool {
	op, known := compareNames[uint64(f.Number(unix.NFTA_RANGE_OP))]
	low, high := value(f[unix.NFTA_RANGE_FROM_DATA]), value(f[unix.NFTA_RANGE_TO_DATA])
	return known && isEquality(op) && low.bits > 0 && d.match(op, d.operand(f, unix.NFTA_RANGE_SREG), &span{low: low, high: high})
}

func (d *decoder) lookup(f *netlink.Fields) bool {
	in := d.w.lookup(d.table, f.Text(unix.NFTA_LOOKUP_SET))
	if in == nil {
		return false
	}
	left := d.wide(f, unix.NFTA_LOOKUP_SREG, in.keyBits())
	in.learnKey(left)
	right := &reference{set: in}
	inverted := f.Number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0
	if f[unix.NFTA_LOOKUP_DREG] == nil {
		op := "=="
		if inverted {
			op = "!="
		}
		return d.match(op, left, right)
	}
	m := &mapped{left, right}
	if inverted || len(in.data) == 0 {
		return false
	}
	if f.Number(unix.NFTA_LOOKUP_DREG) != unix.NFT_REG_VERDICT {
		return d.load(f, unix.NFTA_LOOKUP_DREG, m)
	}
	return d.add(&statement{
		expression: true,
		resolve:    func(c *context) { c.resolve(m) },
		write:      m.json,
	})
}

func (d *decoder) immediate(f *netlink.Fields) bool {
	if f.Number(unix.NFTA_IMMEDIATE_DREG) != unix.NFT_REG_VERDICT {
		return d.load(f, unix.NFTA_IMMEDIATE_DREG, value(f[unix.NFTA_IMMEDIATE_DATA]))
	}
	verdict, ok := verdictOf(f[unix.NFTA_IMMEDIATE_DATA])
	return ok && d.say(verdictJSON(verdict))
}

// verdictOf reads the verdict in an attribute.
func verdictOf(data []byte) (v code, ok bool) {
	outer := netlink.Parse(data)
	inner := netlink.Parse(outer[unix.NFTA_DATA_VERDICT])
	v = code{inner.Number(unix.NFTA_VERDICT_CODE), inner.Text(unix.NFTA_VERDICT_CHAIN)}
	_, known := verdictNames[uint64(v.number)]
	return v, known && inner[unix.NFTA_VERDICT_CODE] != nil
}

func (d *decoder) byteorder(f *netlink.Fields) bool {
	return d.load(f, unix.NFTA_BYTEORDER_DREG, swapped{d.operand(f, unix.NFTA_BYTEORDER_SREG)})
}

// The attributes of bitwise that golang.org/x/sys lacks, and its operations.
const (
	bitwiseOp   = 6
	bitwiseData = 7
	bitwiseReg2 = 8

	bitwiseBool = 0
)

var bitwiseNames = names{1: "<<", 2: ">>", 3: "&", 4: "|", 5: "^"}

func (d *decoder) bitwise(f *netlink.Fields) bool {
	left := d.operand(f, unix.NFTA_BITWISE_SREG)
	op := f.Number(bitwiseOp)
	if op == bitwiseBool {
		o, ok := masked(left, value(f[unix.NFTA_BITWISE_MASK]), value(f[unix.NFTA_BITWISE_XOR]))
		return ok && d.load(f, unix.NFTA_BITWISE_DREG, o)
	}
	name, known := bitwiseNames[uint64(op)]
	var right operand
	if f[bitwiseReg2] != nil {
		right = d.operand(f, bitwiseReg2)
	} else {
		right = value(f[bitwiseData])
	}
	return known && d.load(f, unix.NFTA_BITWISE_DREG, &operation{name, left, right})
}
