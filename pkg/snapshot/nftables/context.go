package nftables

import (
	"golang.org/x/sys/unix"
)

// context is what the statements of a rule have said so far about the packet's headers. nft leaves out a match that a later
// one implies: that of the protocol ahead of a port, for example.
type context struct {
	w        *writer
	family   byte
	headers  [bases]*header
	frames   []*header // of the link layer, ahead of headers[link]
	icmpType byte
	implied  [bases]*statement // the match that says which header the base has
	icmpDep  byte              // the ICMP type that implied[inner] wants
	previous *statement
	nested   bool // inside of a concatenation or an element
	out      []*statement
}

// simplify finds out what the operands of a rule's statements are, and returns the statements as nft writes them.
func simplify(w *writer, family byte, list []*statement) []*statement {
	c := &context{w: w, family: family}
	first := outermost(family)
	c.headers[first.base] = first
	for _, s := range list {
		switch {
		case s.left != nil:
			c.match(s)
			continue
		case s.resolve != nil:
			s.resolve(c)
		}
		c.add(s)
		if !s.expression { // what has an effect depends on the matches ahead of it
			c.forget()
		}
	}
	return c.out
}

func (c *context) forget() {
	c.implied, c.icmpDep, c.previous = [bases]*statement{}, 0, nil
}

func (c *context) add(s *statement) {
	c.out = append(c.out, s)
	c.previous = s
}

// dependency is the match that implies the header at base, and its place.
func (c *context) dependency(at base) (*statement, base) {
	if at == transport && c.implied[at] == nil {
		at = inner
	}
	return c.implied[at], at
}

// release leaves out the match that implies the header at base.
func (c *context) release(at base) {
	s, at := c.dependency(at)
	if s == nil {
		return
	}
	s.gone = true
	c.implied[at] = nil
	if c.previous == s {
		c.previous = nil
	}
}

// store remembers a match of what follows base.
func (c *context) store(s *statement, at base) {
	p, _ := s.left.(*payload)
	if value, ok := s.right.(*constant); ok && p != nil && value.bits == 8 && len(value.raw) == 1 {
		switch kind := value.raw[0]; {
		case p.header == icmpHeader && (kind == icmpEchoReply || kind == icmpEcho):
			c.icmpDep = icmpEcho
			return
		case p.header == icmp6Header && (kind == icmp6Echo || kind == icmp6Reply):
			c.icmpDep = kind
			return
		case p.header == icmpHeader || p.header == icmp6Header:
			c.icmpDep = kind
		}
	}
	if at+1 < bases {
		c.implied[at+1] = s
	}
}

// imply leaves out the match that p implies.
func (c *context) imply(p *payload) {
	if s, _ := c.dependency(p.base); p.header != nil && s != nil && c.implies(p, s) {
		c.release(p.base)
	}
}

func (c *context) implies(p *payload, s *statement) bool {
	by, ok := s.left.(*payload)
	if !ok {
		return true
	}
	switch c.family {
	case unix.NFPROTO_BRIDGE, unix.NFPROTO_NETDEV, unix.NFPROTO_INET:
		// "ip protocol tcp" says that the packet is IPv4, too.
		if by.base == network && (by.header == ipHeader || by.header == ip6Header) && p.base == transport {
			return false
		}
		if s.op == "==" && p.base == by.base {
			switch {
			case p.isKey():
				return false
			case p.base == link:
				return impliesFrame(by, s)
			}
		}
	}
	if p.base != transport || by.base != transport || by.header != icmpHeader && by.header != icmp6Header {
		return true
	}
	return p.field != nil && p.field.icmp != 0 && by.header == p.header && c.icmpDep == p.field.icmp
}

// impliesFrame reports whether a field of the link layer, other than the type, implies the type.
func impliesFrame(by *payload, s *statement) bool {
	if by.header == vlanHeader {
		return false
	}
	if value, ok := s.right.(*constant); ok && by.header == etherHeader && value.bits == 16 {
		return value.bigEndian().Uint64() == unix.ETH_P_8021Q
	}
	return true
}

// learn keeps what a match that a protocol is equal to a value says.
func (c *context) learn(s *statement) {
	value, ok := s.right.(*constant)
	if !ok {
		return
	}
	switch left := s.left.(type) {
	case *payload:
		if left.isKey() {
			c.learnPayload(left, uint32(value.bigEndian().Uint64()))
		}
	case *loaded:
		n, _ := number(left.of.inOrder(value.raw))
		if left.expression == exprMeta {
			c.learnMeta(left.key, uint32(n))
		} else if at := ctBase(left.key); at != unknownBase {
			c.learnCT(at, uint32(n))
		}
	}
}

func (c *context) learnPayload(p *payload, value uint32) {
	from := c.headers[p.base]
	if from == nil {
		return
	}
	next := from.above(value)
	switch {
	case next != nil:
		if next.base == from.base {
			c.frames = append(c.frames, from)
		}
		c.headers[next.base] = next
	case from == icmpHeader && value == icmpEchoReply:
		c.icmpType = icmpEcho
	case from == icmp6Header && value == icmp6Reply:
		c.icmpType = icmp6Echo
	case from == icmpHeader, from == icmp6Header:
		c.icmpType = byte(value)
	}
}

func (c *context) learnMeta(key, value uint32) {
	first := outermost(c.family)
	at, from := unknownBase, first
	switch key {
	case unix.NFT_META_IIFTYPE:
		if c.family == unix.NFPROTO_BRIDGE {
			return
		}
		c.headers[link] = noHeader
		if value == unix.ARPHRD_ETHER {
			c.headers[link] = etherHeader
		}
		return
	case unix.NFT_META_NFPROTO:
		at = network
		if value == uint32(c.family) && first.base == network {
			c.headers[at] = first
			return
		}
	case unix.NFT_META_L4PROTO:
		at, from = transport, serviceHeader
	case unix.NFT_META_PROTOCOL:
		if c.family == unix.NFPROTO_NETDEV || c.family == unix.NFPROTO_BRIDGE {
			at = network
		}
	}
	if at == unknownBase {
		return
	}
	c.headers[at] = from.above(value)
	if c.headers[at] == nil {
		c.headers[at] = noHeader
	}
}

func (c *context) learnCT(at base, value uint32) {
	if from := c.headers[at]; from != nil {
		if next := from.above(value); next != nil {
			c.headers[at+1] = next
		}
	}
}

// ctBase is the base that a key of ct, which names a protocol, belongs to.
func ctBase(key uint32) base {
	switch key {
	case unix.NFT_CT_PROTOCOL:
		return network
	case unix.NFT_CT_L3PROTOCOL:
		return link
	}
	return unknownBase
}

// layer is the base that a key of meta or ct belongs to. names reports whether the key names a protocol.
func (l *loaded) layer() (at base, names bool) {
	if l.expression == exprCT {
		switch l.key {
		case unix.NFT_CT_SRC, unix.NFT_CT_DST:
			return network, false
		case unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST:
			return transport, false
		}
		at = ctBase(l.key)
		return at, at != unknownBase
	}
	switch l.key {
	case unix.NFT_META_IIFTYPE:
		return unknownBase, true
	case unix.NFT_META_NFPROTO, unix.NFT_META_PROTOCOL:
		return link, true
	case unix.NFT_META_L4PROTO:
		return network, true
	}
	return unknownBase, false
}
