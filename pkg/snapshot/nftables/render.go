package nftables

import "bytes"

// as writes an operand that takes its form from another.
func (w *writer) as(f form, o operand) any {
	switch o := o.(type) {
	case *constant:
		return w.constant(f, o, true)
	case *span:
		if o.length != 0 {
			return prefixJSON(w.as(f, o.low), o.length)
		}
		return one("range", []any{w.bound(f, o.low), w.bound(f, o.high)})
	case swapped:
		return w.as(f, o.operand)
	case flagsOf:
		list := flagList(f, f.inOrder(o.raw))
		if f.kind == label || len(list) == 1 {
			return w.constant(f, o.constant, true)
		}
		return list
	case whole:
		n, _ := number(f.inOrder(o.raw))
		return f.flag(n)
	case *operation:
		if c, ok := o.left.(*constant); ok {
			return one(o.op, []any{w.as(f, c), w.as(f, o.right)})
		}
	}
	return o.json(w)
}

func prefixJSON(addr any, length int) any {
	return one("prefix", object{{"addr", addr}, {"len", max(length, 0)}})
}

func (w *writer) bound(f form, o operand) any {
	if c, ok := o.(*constant); ok {
		return w.constant(f, c, false)
	}
	return w.as(f, o)
}

// constant writes a text without a NUL at its end as a wildcard: fewer bytes are compared than there are.
func (w *writer) constant(f form, c *constant, symbolic bool) any {
	f.bits = c.bits
	if f.kind != text || len(c.raw) == 0 {
		return w.write(f, c.raw, symbolic)
	}
	s := textOf(c.raw)
	switch {
	case c.raw[len(c.raw)-1] != 0:
		return s + "*"
	case bytes.HasSuffix([]byte(s), []byte("*")):
		return s[:len(s)-1] + `\*`
	}
	return s
}

func (c *constant) json(w *writer) any { return w.constant(c.form(), c, true) }
func (l *loaded) json(*writer) any     { return l.as }
func (missing) json(*writer) any       { return one("unknown", "register") }

func (p *payload) json(*writer) any {
	if p.header != nil && p.field != nil {
		return one("payload", object{{"protocol", p.header.name}, {"field", p.field.name}})
	}
	return one("payload", object{{"base", baseNames.of(uint32(p.base))}, {"offset", p.offset}, {"len", p.bits}})
}

// sackOption is the one option that holds the same fields several times, of which nft numbers all but the first.
const sackOption = "sack"

func (e *extension) json(*writer) any {
	kind := optionKinds.of(e.kind)
	if e.option == nil || e.field == nil && !e.exists {
		return one(kind, object{{"base", int(e.number)}, {"offset", e.offset}, {"len", e.bits}})
	}
	name := e.option.name
	if n := e.offset / 64; name == sackOption && e.kind == optionTCP && n > 0 && n < 4 {
		name += string(rune('0' + n))
	}
	if e.exists {
		return one(kind, one("name", name))
	}
	return one(kind, object{{"name", name}, {"field", e.field.name}})
}

func (b *operation) json(w *writer) any {
	right := b.left.form()
	if b.op == "<<" || b.op == ">>" {
		right = numberForm
	}
	return one(b.op, []any{b.left.json(w), w.as(right, b.right)})
}

func (c concat) json(w *writer) any {
	list := make([]any, len(c))
	for i, part := range c {
		list[i] = part.json(w)
	}
	return one("concat", list)
}

func (h *hash) json(w *writer) any { return one("jhash", h.members.with("expr", h.of.json(w))) }

func (m *mapped) json(w *writer) any {
	word := "map"
	if m.in.data[0].datatype == typeVerdict {
		word = "vmap"
	}
	return one(word, object{{"key", m.key.json(w)}, {"data", m.in.json(w)}})
}

func (r *reference) json(w *writer) any {
	if !r.anonymous() {
		return "@" + r.name
	}
	return one("set", w.elements(r))
}

func (s *span) json(w *writer) any { return w.as(s.low.form(), s) }

func (c code) json(*writer) any { return verdictJSON(c) }

// Verdicts: NFT_* and NF_*, as unsigned numbers.
const (
	verdictJump = 1<<32 - 3
	verdictGoto = 1<<32 - 4
)

var verdictNames = names{0: "drop", 1: "accept", 3: "queue", 1<<32 - 1: "continue", 1<<32 - 2: "break", 1<<32 - 3: "jump", 1<<32 - 4: "goto", 1<<32 - 5: "return"}

func verdictJSON(c code) any {
	name := verdictNames.of(c.number)
	if c.number == verdictJump || c.number == verdictGoto {
		return one(name, one("target", c.chain))
	}
	return one(name, nil)
}
