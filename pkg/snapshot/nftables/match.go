package nftables

import (
	"bytes"
	"math/bits"

	"golang.org/x/sys/unix"
)

// match simplifies a match, which may become several: nft loads neighbouring fields at once.
func (c *context) match(s *statement) {
	if p, ok := s.left.(*payload); ok {
		c.matchPayload(s, p)
		return
	}
	s.left = c.resolve(s.left)
	switch left := s.left.(type) {
	case *loaded:
		c.matchLoaded(s, left)
	case *operation:
		if p := c.matchBinary(s, left); p != nil {
			c.matchPayload(s, p)
			return
		}
	}
	c.finish(s)
}

// finish joins two comparisons that are the bounds of a range.
func (c *context) finish(s *statement) {
	before := c.previous
	if before != nil && before.left != nil && !before.gone && c.same(before.left, s.left) {
		op := ""
		switch before.op + " " + s.op {
		case ">= <=":
			op = "=="
		case "< >":
			op = "!="
		}
		if op != "" {
			before.gone = true
			s.op, s.right = op, &span{low: before.right, high: s.right}
		}
	}
	c.add(s)
}

func (c *context) same(a, b operand) bool {
	return a.form().host == b.form().host && bytes.Equal(appendJSON(nil, a.json(c.w)), appendJSON(nil, b.json(c.w)))
}

func isEquality(op string) bool { return op == "==" || op == "!=" }

func (c *context) matchLoaded(s *statement, l *loaded) {
	if s.op != "==" || l.expression == "" {
		return
	}
	switch s.right.(type) {
	case *span, *reference:
		return
	}
	c.learn(s)
	at, names := l.layer()
	if at >= transport {
		return
	}
	if by, _ := c.dependency(at); by != nil && c.impliedByLoaded(by, s, l) {
		c.release(at)
	}
	if names {
		c.store(s, at)
	}
}

// impliedByLoaded reports whether a match of meta or ct implies the earlier match by.
func (c *context) impliedByLoaded(by, s *statement, l *loaded) bool {
	protocol, ok := familyOf(by)
	if !ok {
		return true
	}
	switch c.family {
	case unix.NFPROTO_IPV4, unix.NFPROTO_IPV6:
		return c.family == protocol
	case unix.NFPROTO_INET, unix.NFPROTO_NETDEV, unix.NFPROTO_BRIDGE:
	default:
		return true
	}
	value, isValue := s.right.(*constant)
	if l.expression != exprMeta || l.key != unix.NFT_META_L4PROTO || !isValue {
		return true
	}
	switch value.bigEndian().Uint64() {
	case unix.IPPROTO_ICMP:
		return protocol != unix.NFPROTO_IPV6
	case unix.IPPROTO_ICMPV6:
		return protocol != unix.NFPROTO_IPV4
	}
	return false
}

// familyOf is the family that a match wants; ok is false if it isn't about that.
func familyOf(s *statement) (family byte, ok bool) {
	value, isValue := s.right.(*constant)
	if !isValue {
		return 0, false
	}
	switch left := s.left.(type) {
	case *loaded:
		if left.expression == exprMeta && left.key == unix.NFT_META_NFPROTO {
			return byte(value.bigEndian().Uint64()), true
		}
		ok = left.expression == exprMeta && left.key == unix.NFT_META_PROTOCOL
	case *payload:
		ok = left.base == link && left.form().datatype == typeEtherType
	}
	switch value.bigEndian().Uint64() {
	case unix.ETH_P_IP:
		family = unix.NFPROTO_IPV4
	case unix.ETH_P_IPV6:
		family = unix.NFPROTO_IPV6
	}
	return family, ok
}

func (c *context) matchPayload(s *statement, p *payload) {
	if isEquality(s.op) {
		switch right := s.right.(type) {
		case *constant:
			c.matchFields(s, p, right)
			return
		case *reference:
			c.learnICMP(p, right)
		}
	}
	c.complete(p)
	c.imply(p)
	c.finish(s)
}

// matchFields makes a match of each field that p covers.
func (c *context) matchFields(s *statement, p *payload, right *constant) {
	for _, part := range c.fields(p) {
		var value *constant
		value, right = right.cut(part.bits)
		one := &statement{op: s.op, left: part, right: value, expression: true}
		if part.field != nil && part.bits < part.field.bits {
			low := newConstant(value.bigEndian().Lsh(value.bigEndian(), uint(part.field.bits-part.bits)), part.field.bits)
			one.right = &span{low: low, length: part.bits}
		}
		at := part.base
		if s.op == "==" {
			c.learn(one)
			if h := c.headers[part.base]; h != nil && part.isKey() && part.base == link {
				if next := h.above(uint32(value.bigEndian().Uint64())); next != nil && next.base == h.base {
					at--
				}
			}
		}
		c.imply(part)
		if s.op == "==" && part.isKey() {
			c.store(one, at)
		}
		if part.form().kind == bitmask {
			one.right = whole{value}
		}
		c.out = append(c.out, one)
	}
	c.previous = nil
}

// learnICMP finds out which ICMP type the first element of a set stands for.
func (c *context) learnICMP(p *payload, r *reference) {
	h := c.headers[p.base]
	if p.base != transport || p.offset != 0 || p.bits != 8 || c.icmpType != 0 || !r.anonymous() || h != icmpHeader && h != icmp6Header {
		return
	}
	if first := r.firstByte(); first != nil {
		p.header, p.field = h, &h.fields[0]
		c.icmpType = *first
	}
}

// flagsOf is written as a list if several bits are set, whole as a number.
type (
	flagsOf struct{ *constant }
	whole   struct{ *constant }
)

func (c *context) matchBinary(s *statement, b *operation) *payload {
	f := b.left.form()
	right, isValue := s.right.(*constant)
	mask, isMask := b.right.(*constant)
	switch {
	case b.op == "&" && isMask && isEquality(s.op) && (f.kind == bitmask || f.kind == label):
		if isValue {
			matchFlags(s, b, mask, right)
		}
		return nil
	case b.op == "&" && isMask && isValue && f.prefix:
		if length, ok := prefixOfMask(f, mask); ok {
			s.left, s.right = b.left, &span{low: right, length: length}
			return nil
		}
	}
	if b.op != "&" || !isMask {
		return nil
	}
	shift, ok := c.trim(b.left, mask)
	if !ok {
		return nil
	}
	s.left, s.right = b.left, adjust(s.right, shift, b.left.form().bits)
	p, _ := b.left.(*payload)
	return p
}

func matchFlags(s *statement, b *operation, mask, right *constant) {
	switch {
	case right.isZero():
		op := "in"
		if s.op == "==" {
			op = "!"
		}
		s.op, s.left, s.right = op, b.left, flagsOf{mask}
	case onesIn(right.raw) == 1 && bytes.Equal(mask.raw, right.raw):
	default:
		s.left, s.right = &operation{"&", b.left, flagsOf{mask}}, flagsOf{right}
	}
}

func onesIn(raw []byte) (n int) {
	for _, b := range raw {
		n += bits.OnesCount8(b)
	}
	return n
}

// unshifted is the field that a mask cuts out and a shift moves to the end, or nil.
func (c *context) unshifted(b *operation) operand {
	masked, ok := b.left.(*operation)
	if !ok || b.op != ">>" || masked.op != "&" {
		return nil
	}
	mask, isMask := masked.right.(*constant)
	by, isShift := b.right.(*constant)
	p, isPayload := masked.left.(*payload)
	if !isMask || !isShift || !isPayload {
		return nil
	}
	n, _ := number(numberForm.inOrder(by.raw))
	if from, _ := run(mask.bigEndian()); uint64(from) != n {
		return nil
	}
	if _, ok := c.trim(p, mask); !ok {
		return nil
	}
	c.complete(p)
	c.imply(p)
	return p
}

// adjust shifts what a trimmed field is compared with.
func adjust(right operand, shift, bits int) operand {
	switch right := right.(type) {
	case *constant:
		return right.shifted(shift, bits)
	case *span:
		if right.length == 0 {
			return &span{low: adjust(right.low, shift, bits), high: adjust(right.high, shift, bits)}
		}
	case *reference:
		if right.anonymous() {
			return &reference{right.set, shift, bits}
		}
	}
	return right
}
