package nftables

import (
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

func (d *decoder) meta(f *netlink.Fields) bool {
	number := f.Number(unix.NFTA_META_KEY)
	k, known := metaKeys[number]
	if !known {
		return false
	}
	as := one(exprMeta, one("key", k.name))
	if f[unix.NFTA_META_SREG] == nil {
		return d.load(f, unix.NFTA_META_DREG, &loaded{k.form, as, exprMeta, number})
	}
	return d.mangle(&loaded{of: k.form, as: as}, d.operand(f, unix.NFTA_META_SREG))
}

func (d *decoder) ct(f *netlink.Fields) bool {
	number := f.Number(unix.NFTA_CT_KEY)
	k, known := ctKeys[number]
	if !known {
		return false
	}
	members := one("key", k.name)
	if f[unix.NFTA_CT_DIRECTION] != nil {
		members = members.with("dir", dirNames.of(number8(f[unix.NFTA_CT_DIRECTION])))
	}
	as := one(exprCT, members)
	if f[unix.NFTA_CT_SREG] == nil {
		return d.load(f, unix.NFTA_CT_DREG, &loaded{k.form, as, exprCT, number})
	}
	from := d.operand(f, unix.NFTA_CT_SREG)
	if number == unix.NFT_CT_EVENTMASK {
		if events, ok := from.(*constant); ok {
			from = flagsOf{events}
		}
	}
	return d.mangle(&loaded{of: k.form, as: as}, from)
}

// mangle adds a statement that stores from.
func (d *decoder) mangle(to, from operand) bool {
	return d.add(&statement{
		resolve: func(c *context) { from = c.resolve(from) },
		write: func(w *writer) any {
			return one("mangle", object{{"key", to.json(w)}, {"value", w.as(to.form(), from)}})
		},
	})
}

func (d *decoder) payload(f *netlink.Fields) bool {
	at := base(f.Number(unix.NFTA_PAYLOAD_BASE)) + link
	offset, size := f.Number(unix.NFTA_PAYLOAD_OFFSET), f.Number(unix.NFTA_PAYLOAD_LEN)
	if at >= bases || size == 0 || size > 256 || offset > 1<<16 {
		return false
	}
	p := newPayload(at, 8*int(offset), 8*int(size))
	if f[unix.NFTA_PAYLOAD_SREG] == nil {
		return d.load(f, unix.NFTA_PAYLOAD_DREG, p)
	}
	from := d.operand(f, unix.NFTA_PAYLOAD_SREG)
	return d.add(&statement{
		resolve: func(c *context) { p, from = c.stored(p, from) },
		write: func(w *writer) any {
			return one("mangle", object{{"key", p.json(w)}, {"value", w.as(p.form(), from)}})
		},
	})
}

// stored finds the field that a statement writes. If the field is only a part of the bytes that are written, the other
// bits are kept by a mask.
func (c *context) stored(p *payload, from operand) (*payload, operand) {
	c.complete(p)
	if p.field == nil {
		if part, value, ok := c.storedBits(p, from); ok {
			p, from = part, value
		}
	}
	c.complete(p)
	c.imply(p)
	return p, c.resolve(from)
}

func (c *context) storedBits(p *payload, from operand) (part *payload, to operand, ok bool) {
	set, value := from, newConstant(ones(0), p.bits)
	if or, isOr := from.(*operation); isOr && or.op == "|" {
		if value, ok = or.right.(*constant); !ok {
			return nil, nil, false
		}
		set = or.left
	}
	kept := newConstant(ones(0), p.bits)
	if and, isAnd := set.(*operation); isAnd && and.op == "&" {
		if kept, ok = and.right.(*constant); !ok {
			return nil, nil, false
		}
		set = and.left
	} else if set != from { // all bits of the field are set
		kept = invert(value)
	}
	part, ok = set.(*payload)
	if !ok || part.base != p.base || part.offset != p.offset || part.bits != p.bits || kept.bits != p.bits || value.bits != p.bits {
		return nil, nil, false
	}
	field := invert(kept)
	for i := range field.raw {
		field.raw[i] |= value.raw[i]
	}
	shift, ok := c.trim(part, field)
	if !ok {
		return nil, nil, false
	}
	return part, value.shifted(shift, part.bits), true
}

func invert(c *constant) *constant {
	raw := make([]byte, len(c.raw))
	for i, b := range c.raw {
		raw[i] = ^b
	}
	return &constant{raw, c.bits}
}

func (d *decoder) extension(f *netlink.Fields) bool {
	e := &extension{
		kind: f.Number(unix.NFTA_EXTHDR_OP), number: byte(number8(f[unix.NFTA_EXTHDR_TYPE])),
		offset: 8 * int(f.Number(unix.NFTA_EXTHDR_OFFSET)), bits: 8 * int(f.Number(unix.NFTA_EXTHDR_LEN)),
		exists: f.Number(unix.NFTA_EXTHDR_FLAGS)&unix.NFT_EXTHDR_F_PRESENT != 0,
	}
	if _, known := optionKinds[uint64(e.kind)]; !known {
		return false
	}
	e.option, e.field = findOption(e.kind, e.number, e.offset, e.bits)
	switch {
	case f[unix.NFTA_EXTHDR_DREG] != nil:
		return d.load(f, unix.NFTA_EXTHDR_DREG, e)
	case f[unix.NFTA_EXTHDR_SREG] != nil:
		from := d.operand(f, unix.NFTA_EXTHDR_SREG)
		return d.add(&statement{write: func(w *writer) any {
			return one("mangle", object{{"key", e.json(w)}, {"value", w.as(e.form(), from)}})
		}})
	}
	e.exists = true // the whole option is removed
	return d.add(&statement{write: func(w *writer) any { return one("reset", e.json(w)) }})
}

func (d *decoder) rt(f *netlink.Fields) bool {
	k, known := rtKeys[f.Number(unix.NFTA_RT_KEY)]
	members := one("key", k.name)
	if k.family != "" {
		members = members.with("family", k.family)
	}
	return known && d.load(f, unix.NFTA_RT_DREG, &loaded{of: k.form, as: one("rt", members)})
}

// The attributes and numbers of expressions that golang.org/x/sys lacks.
const (
	socketKey  = 1
	socketDreg = 2

	fibDreg    = 1
	fibResult  = 2
	fibFlag    = 3
	fibPresent = 1 << 5

	osfDreg    = 1
	osfTTL     = 2
	osfFlags   = 3
	osfVersion = 1

	xfrmDreg  = 1
	xfrmKey   = 2
	xfrmDir   = 3
	xfrmSpnum = 4
)

func (d *decoder) socket(f *netlink.Fields) bool {
	k, known := socketKeys[f.Number(socketKey)]
	return known && d.load(f, socketDreg, &loaded{of: k.form, as: one("socket", one("key", k.name))})
}

func (d *decoder) fib(f *netlink.Fields) bool {
	k, known := fibKeys[f.Number(fibResult)]
	bits := f.Number(fibFlag)
	if bits&fibPresent != 0 {
		k.form = form{typeBoolean, k.bits, true}
	}
	members := one("result", k.name)
	if list := words(fibFlags, bits&^fibPresent); len(list) > 0 {
		members = members.with("flags", list)
	}
	return known && d.load(f, fibDreg, &loaded{of: k.form, as: one("fib", members)})
}

func (d *decoder) osf(f *netlink.Fields) bool {
	name := "name"
	if f.Number(osfFlags)&osfVersion != 0 {
		name = "version"
	}
	members := one("key", name)
	if ttl, ok := (names{1: "loose", 2: "skip"})[uint64(number8(f[osfTTL]))]; ok {
		members = members.with("ttl", ttl)
	}
	return d.load(f, osfDreg, &loaded{of: form{typeString, 128, true}, as: one("osf", members)})
}

func (d *decoder) xfrm(f *netlink.Fields) bool {
	k, known := xfrmKeys[f.Number(xfrmKey)]
	dir, knownDir := (names{0: "in", 1: "out"})[uint64(number8(f[xfrmDir]))]
	members := one("key", k.name)
	if k.family != "" {
		members = members.with("family", k.family)
	}
	members = members.with("dir", dir).with("spnum", f.Number(xfrmSpnum))
	return known && knownDir && d.load(f, xfrmDreg, &loaded{of: k.form, as: one("ipsec", members)})
}

func (d *decoder) numgen(f *netlink.Fields) bool {
	mode, known := (names{unix.NFT_NG_INCREMENTAL: "inc", unix.NFT_NG_RANDOM: "random"})[uint64(f.Number(unix.NFTA_NG_TYPE))]
	as := one("numgen", object{{"mode", mode}, {"mod", f.Number(unix.NFTA_NG_MODULUS)}, {"offset", f.Number(unix.NFTA_NG_OFFSET)}})
	return known && d.load(f, unix.NFTA_NG_DREG, &loaded{of: numberForm, as: as})
}

const hashSym = 1 // NFT_HASH_SYM

func (d *decoder) hash(f *netlink.Fields) bool {
	members := one("mod", f.Number(unix.NFTA_HASH_MODULUS))
	if f[unix.NFTA_HASH_SEED] != nil {
		members = members.with("seed", f.Number(unix.NFTA_HASH_SEED))
	}
	if offset := f.Number(unix.NFTA_HASH_OFFSET); offset != 0 {
		members = members.with("offset", offset)
	}
	if f.Number(unix.NFTA_HASH_TYPE) == hashSym {
		return d.load(f, unix.NFTA_HASH_DREG, &loaded{of: numberForm, as: one("symhash", members)})
	}
	of := d.wide(f, unix.NFTA_HASH_SREG, 8*int(f.Number(unix.NFTA_HASH_LEN)))
	return d.load(f, unix.NFTA_HASH_DREG, &hash{members, of})
}
