package nftables

import "math/big"

// operand is what a register holds. A constant doesn't know its form; what it is compared with or stored into does.
type operand interface {
	form() form
	json(w *writer) any
}

// constant is a value in the order of its register's bytes.
type constant struct {
	raw  []byte
	bits int
}

// loaded is what meta, ct, rt, socket, fib and others load.
type loaded struct {
	of form
	as any // in JSON
	// What the following rules need to know of meta and ct: the expression and its key.
	expression string
	key        uint32
}

// payload is a part of the packet. Its header is nil if it is unknown.
type payload struct {
	base         base
	offset, bits int
	header       *header
	field        *field
}

// extension is a field of an option. exists says that only the option's presence counts.
type extension struct {
	kind         uint32
	number       byte
	offset, bits int
	exists       bool
	option       *option
	field        *field
}

// operation is an operator and its two operands.
type operation struct {
	op          string
	left, right operand
}

// swapped is an operand in the other byte order.
type swapped struct{ operand }

// concat is a concatenation.
type concat []operand

// hash is a hash of an operand.
type hash struct {
	members object
	of      operand
}

// mapped is what a map holds for a key. The set's values may need a shift, because the key's field does not end with a byte.
type mapped struct {
	key operand
	in  *reference
}

// reference is a set that a rule refers to.
type reference struct {
	*set
	shift, bits int // of the elements; 0 bits if they are as in the set
}

// span is a range of values, or a prefix if there is a length. The length 0 stands for none; /0 is nobits.
type span struct {
	low, high operand
	length    int
}

const nobits = -1

// code is a verdict.
type code struct {
	number uint32
	chain  string
}

// missing stands for a register that no known expression has filled.
type missing struct{}

var numberForm = form{typeInteger, 32, true}

func (c *constant) form() form  { return form{typeInteger, c.bits, false} }
func (l *loaded) form() form    { return l.of }
func (b *operation) form() form { return b.left.form() }
func (concat) form() form       { return form{typeInteger, 0, false} }
func (*hash) form() form        { return numberForm }
func (*reference) form() form   { return numberForm }
func (*span) form() form        { return numberForm }
func (code) form() form         { return form{typeVerdict, 0, false} }
func (missing) form() form      { return form{typeInteger, 32, false} }

func (p *payload) form() form {
	if p.field != nil {
		return form{p.field.datatype, p.bits, false}
	}
	return form{typeInteger, p.bits, false}
}

func (e *extension) form() form {
	switch {
	case e.exists:
		return form{typeBoolean, e.bits, false}
	case e.field != nil:
		return form{e.field.datatype, e.bits, false}
	}
	return form{typeInteger, e.bits, false}
}

func (s swapped) form() form {
	f := s.operand.form()
	f.host = !f.host
	return f
}

func (m *mapped) form() form { return m.in.data[0] }

// bigEndian is the value as a number, most significant byte first.
func (c *constant) bigEndian() *big.Int { return new(big.Int).SetBytes(c.raw) }

// newConstant is a number of bits.
func newConstant(n *big.Int, bits int) *constant {
	size := (bits + 7) / 8
	low := new(big.Int).And(n, ones(8*size)) // what doesn't fit is cut off
	return &constant{low.FillBytes(make([]byte, size)), bits}
}

// ones is a number of this many bits, all set.
func ones(bits int) *big.Int {
	n := new(big.Int).Lsh(big.NewInt(1), uint(max(bits, 0)))
	return n.Sub(n, big.NewInt(1))
}

// shifted drops bits at the end.
func (c *constant) shifted(shift, bits int) *constant {
	return newConstant(new(big.Int).Rsh(c.bigEndian(), uint(shift)), bits)
}

// cut splits the first bits off.
func (c *constant) cut(bits int) (first, rest *constant) {
	bits = min(bits, c.bits)
	n := c.bigEndian()
	left := c.bits - bits
	return newConstant(new(big.Int).Rsh(n, uint(left)), bits), newConstant(new(big.Int).And(n, ones(left)), left)
}

func (c *constant) isZero() bool { return isZero(c.raw) }

// run finds the bits of a mask from the last one: the first that is set, and the first after it that is not.
func run(mask *big.Int) (from, to int) {
	from = int(mask.TrailingZeroBits())
	for to = from; mask.Bit(to) == 1; to++ {
	}
	return from, to
}

// prefixOfMask is the length of a prefix that a mask of this form stands for.
func prefixOfMask(f form, mask *constant) (length int, ok bool) {
	n := new(big.Int).SetBytes(f.inOrder(mask.raw))
	if n.Sign() == 0 {
		return nobits, true
	}
	from, to := run(n)
	return to - from, to >= mask.bits
}
