package nftables

// isKey reports whether the payload is the field that names the next protocol.
func (p *payload) isKey() bool {
	return p.header != nil && p.field != nil && p.field.name == p.header.key && p.header.key != "" && p.bits == p.field.bits
}

// resolve finds out what the fields of an operand are, and drops masks that only cut a field out.
func (c *context) resolve(o operand) operand {
	switch o := o.(type) {
	case *payload:
		c.complete(o)
		c.imply(o)
	case *extension:
		switch o.kind {
		case optionTCP:
			c.release(transport)
		case optionIPv4, optionIPv6:
			c.release(network)
		}
	case *loaded:
		c.completeCT(o)
	case *operation:
		return c.resolveBinary(o)
	case swapped:
		return swapped{c.resolve(o.operand)}
	case concat:
		defer func(was bool) { c.nested = was }(c.nested)
		c.nested = true
		for i := range o {
			o[i] = c.resolve(o[i])
		}
	case *hash:
		o.of = c.resolve(o.of)
	case *mapped:
		c.resolveMapped(o)
	}
	return o
}

func (c *context) resolveBinary(b *operation) operand {
	if field := c.unshifted(b); field != nil {
		return field
	}
	b.left = c.resolve(b.left)
	mask, isMask := b.right.(*constant)
	if p, ok := b.left.(*payload); ok && c.nested && b.op == "&" && isMask {
		if _, ok := c.trim(p, mask); ok {
			c.complete(p)
			c.imply(p)
			return p
		}
	}
	b.right = c.resolve(b.right)
	return b
}

func (c *context) resolveMapped(m *mapped) {
	b, ok := m.key.(*operation)
	if !ok || b.op != "&" {
		m.key = c.resolve(m.key)
		return
	}
	mask, isMask := b.right.(*constant)
	if p, ok := b.left.(*payload); ok && isMask {
		if shift, ok := c.trim(p, mask); ok {
			m.key, m.in = p, adjust(m.in, shift, p.bits).(*reference)
		}
	}
	m.key = c.resolve(m.key)
}

// resolveElement is resolve for the key of an element.
func (c *context) resolveElement(o operand) operand {
	defer func(was bool) { c.nested = was }(c.nested)
	c.nested = true
	return c.resolve(o)
}

func (c *context) completeCT(l *loaded) {
	if l.expression != exprCT {
		return
	}
	if at, names := l.layer(); at != network || names {
		return
	}
	switch c.headers[network] {
	case ipHeader:
		l.of = form{typeIPv4, 32, false}
	case ip6Header:
		l.of = form{typeIPv6, 128, false}
	}
}

// headerOf finds the header that p is in, and p's offset in it. The link layer may have several.
func (c *context) headerOf(p *payload) (h *header, offset int) {
	h, offset = c.headers[p.base], p.offset
	if h == nil || p.base != link || offset < h.bits {
		return h, offset
	}
	for _, frame := range c.frames {
		if offset < frame.bits {
			return frame, offset
		}
		offset -= frame.bits
	}
	return h, offset
}

// suits reports whether the field exists in the ICMP message that the rule is about.
func (c *context) suits(f *field) bool {
	return f.icmp == 0 || c.icmpType == 0 || c.icmpType == f.icmp
}

// complete names the field that p is, if there is one.
func (c *context) complete(p *payload) {
	h, offset := c.headerOf(p)
	if h == nil {
		return
	}
	for i := range h.fields {
		f := &h.fields[i]
		if f.offset == offset && f.bits == p.bits && c.suits(f) {
			p.header, p.field = h, f
			return
		}
	}
}

// fields are the fields that p covers; the last may be a part of one.
func (c *context) fields(p *payload) (parts []*payload) {
	h, offset := c.headerOf(p)
	rest := *p
	if h == nil || h == noHeader {
		return []*payload{newPayload(p.base, offset, p.bits)}
	}
	for i := range h.fields {
		f := &h.fields[i]
		if f.offset != offset || !c.suits(f) {
			continue
		}
		part := &payload{base: p.base, offset: rest.offset, bits: min(f.bits, rest.bits), header: h, field: f}
		parts = append(parts, part)
		rest.bits -= part.bits
		rest.offset += part.bits
		offset += part.bits
		if rest.bits == 0 {
			return parts
		}
	}
	return append(parts, newPayload(p.base, offset, rest.bits))
}

// newPayload knows the ports of any transport protocol.
func newPayload(at base, offset, bits int) *payload {
	p := &payload{base: at, offset: offset, bits: bits}
	if at == transport && bits == 16 && (offset == 0 || offset == 16) {
		p.header, p.field = thHeader, &thHeader.fields[offset/16]
	}
	return p
}

// trim makes of an operand the field that the mask cuts out of it. It returns by how many bits the mask shifts the field.
func (c *context) trim(o operand, mask *constant) (shift int, ok bool) {
	from, to := run(mask.bigEndian())
	skip := (mask.bits+7)/8*8 - to
	switch o := o.(type) {
	case *payload:
		return from, to > from && c.trimPayload(o, skip, from, to)
	case *extension:
		if o.field != nil || to == from {
			return 0, false
		}
		option, at := findOption(o.kind, o.number, o.offset+skip, to-from)
		if at == nil {
			return 0, false
		}
		o.option, o.field, o.offset, o.bits = option, at, o.offset+skip, to-from
		return from, true
	}
	return 0, false
}

func (c *context) trimPayload(p *payload, skip, from, to int) bool {
	h, offset := c.headerOf(p)
	if h == nil {
		return false
	}
	offset += skip
	left, taken := p.bits, 0
	for i := range h.fields {
		f := &h.fields[i]
		if f.offset != offset {
			continue
		}
		if left -= f.bits; left <= 0 {
			return false
		}
		offset += f.bits
		if taken += f.bits; from+taken == to {
			p.offset += skip
			p.bits = taken
			return true
		}
	}
	return false
}
