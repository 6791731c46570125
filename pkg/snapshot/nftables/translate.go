package nftables

import (
	"math/big"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// translation is a statement that changes or redirects: nat, masq, redir, tproxy, dup and fwd.
type translation struct {
	name       string
	head       object // of the JSON, ahead of address and port
	addr, port operand
	addrName   string
	portName   string
	addrForm   form
	portForm   form
	tail       object
	reset      bool // the port may be any field, even one that implies the match of the protocol
}

func (d *decoder) translate(t *translation) bool {
	return d.add(&statement{resolve: t.resolve, write: t.json})
}

func (t *translation) resolve(c *context) {
	if t.addr != nil {
		t.addr = c.resolve(t.addr)
	}
	if t.port == nil {
		return
	}
	if t.reset {
		c.forget()
	}
	t.port = c.resolve(t.port)
}

func (t *translation) json(w *writer) any {
	out := t.head
	if t.addr != nil {
		out = out.with(t.addrName, w.as(t.addrForm, t.addr))
	}
	if t.port != nil {
		out = out.with(t.portName, w.as(t.portForm, t.port))
	}
	return one(t.name, append(out, t.tail...).orNull())
}

// bounds is an operand, or a range if there are two.
func (d *decoder) bounds(f *netlink.Fields, low, high int) operand {
	first, last := slot(f.Number(low)), slot(f.Number(high))
	if first == 0 {
		return nil
	}
	from := d.held(first)
	if last == 0 || last == first {
		return from
	}
	return &span{low: from, high: d.held(last)}
}

// asPrefix turns a range of addresses into a prefix if it is one.
func asPrefix(o operand) operand {
	s, ok := o.(*span)
	if !ok {
		return o
	}
	low, isValue := s.low.(*constant)
	high, isValueToo := s.high.(*constant)
	if !isValue || !isValueToo || low.bits != high.bits {
		return o
	}
	if length, ok := prefixOfRange(low.bigEndian(), high.bigEndian(), low.bits); ok {
		return &span{low: low, length: length}
	}
	return o
}

// prefixOfRange is the length of the prefix that a range is, or nobits.
func prefixOfRange(low, high *big.Int, bits int) (length int, ok bool) {
	differ := new(big.Int).Xor(low, high)
	_, free := run(new(big.Int).Set(differ))
	if differ.Bit(0) == 0 {
		free = 0
	}
	if differ.Cmp(ones(free)) != 0 || new(big.Int).And(low, differ).Sign() != 0 {
		return 0, false
	}
	if free >= bits {
		return nobits, true
	}
	return bits - free, true
}

func addressForm(family uint32) form {
	if family == unix.NFPROTO_IPV4 {
		return typeIPv4.form()
	}
	return typeIPv6.form()
}

func familyOnly(family uint32) object {
	if family != unix.NFPROTO_IPV4 && family != unix.NFPROTO_IPV6 {
		return nil
	}
	return one("family", familyNames.of(family))
}

func (d *decoder) nat(f *netlink.Fields) bool {
	name, known := natNames[uint64(f.Number(unix.NFTA_NAT_TYPE))]
	family, bits := f.Number(unix.NFTA_NAT_FAMILY), f.Number(unix.NFTA_NAT_FLAGS)
	t := &translation{name: name, addrName: "addr", portName: "port", addrForm: addressForm(family), portForm: typePort.form(), reset: true}
	t.addr = d.bounds(f, unix.NFTA_NAT_REG_ADDR_MIN, unix.NFTA_NAT_REG_ADDR_MIN)
	if m, isMap := t.addr.(*mapped); isMap && (m.in.spans || len(m.in.data) > 1) { // the map has both bounds, or the port, too
		t.head = familyOnly(family)
	} else {
		t.addr = asPrefix(d.bounds(f, unix.NFTA_NAT_REG_ADDR_MIN, unix.NFTA_NAT_REG_ADDR_MAX))
		t.port = d.bounds(f, unix.NFTA_NAT_REG_PROTO_MIN, unix.NFTA_NAT_REG_PROTO_MAX)
	}
	if d.table.family == unix.NFPROTO_INET {
		t.head = familyOnly(family)
	}
	t.tail = natTail(bits)
	if bits&natTypeNetmap != 0 {
		t.tail = t.tail.with("type_flags", "prefix")
	}
	return known && d.translate(t)
}

func natTail(bits uint32) object { return object(nil).withSome("flags", words(natFlags, bits)) }

func (d *decoder) masq(f *netlink.Fields) bool {
	return d.translate(&translation{
		name: "masquerade", portName: "port", portForm: typePort.form(), tail: natTail(f.Number(unix.NFTA_MASQ_FLAGS)), reset: true,
		port: d.bounds(f, unix.NFTA_MASQ_REG_PROTO_MIN, unix.NFTA_MASQ_REG_PROTO_MAX),
	})
}

func (d *decoder) redir(f *netlink.Fields) bool {
	return d.translate(&translation{
		name: "redirect", portName: "port", portForm: typePort.form(), tail: natTail(f.Number(unix.NFTA_REDIR_FLAGS)), reset: true,
		port: d.bounds(f, unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFTA_REDIR_REG_PROTO_MAX),
	})
}

const (
	tproxyFamily = 1
	tproxyAddr   = 2
	tproxyPort   = 3

	dupAddr = 1
	dupDev  = 2

	fwdDev    = 1
	fwdAddr   = 2
	fwdFamily = 3
)

func (d *decoder) tproxy(f *netlink.Fields) bool {
	family := f.Number(tproxyFamily)
	t := &translation{name: "tproxy", addrName: "addr", portName: "port", addrForm: addressForm(family), portForm: typePort.form(), reset: true}
	if d.table.family == unix.NFPROTO_INET {
		t.head = familyOnly(family)
	}
	t.addr, t.port = d.bounds(f, tproxyAddr, tproxyAddr), d.bounds(f, tproxyPort, tproxyPort)
	return d.translate(t)
}

func (d *decoder) dup(f *netlink.Fields) bool {
	t := &translation{name: "dup", addrName: "addr", portName: "dev", addrForm: addressForm(uint32(d.table.family)), portForm: typeIfindex.form()}
	t.addr, t.port = d.bounds(f, dupAddr, dupAddr), d.bounds(f, dupDev, dupDev)
	if t.addr == nil { // in family netdev there is only the device, which nft calls an address
		t.portName = "addr"
	}
	return d.translate(t)
}

func (d *decoder) fwd(f *netlink.Fields) bool {
	family := f.Number(fwdFamily)
	t := &translation{name: "fwd", addrName: "dev", portName: "addr", addrForm: typeIfindex.form(), portForm: addressForm(family)}
	t.addr, t.port = d.bounds(f, fwdDev, fwdDev), d.bounds(f, fwdAddr, fwdAddr)
	if t.port != nil {
		t.tail = familyOnly(family)
	}
	return d.translate(t)
}
