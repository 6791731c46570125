package trace

import (
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"
)

func one[T ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~int](n T) ([]Value, bool) {
	return []Value{Number(n)}, true
}

func none() ([]Value, bool) { return nil, true }

func (w *walk) notKnown(what string) ([]Value, bool) {
	w.missing = what
	return nil, false
}

func (f Field) eval(w *walk) ([]Value, bool) {
	p := w.packet
	icmp := w.icmp()
	switch f {
	case NFProto:
		if w.family == IP {
			return one(unix.NFPROTO_IPV4)
		}
		return one(unix.NFPROTO_IPV6)
	case L4Proto:
		return one(p.Protocol)
	case Saddr:
		return w.addr(w.src, "source")
	case Daddr:
		return w.addr(w.dst, "destination")
	case Sport:
		return w.port16(w.src, "source")
	case Dport:
		return w.port16(w.dst, "destination")
	case ICMPType:
		if icmp {
			return one(p.ICMPType)
		}
	case ICMPCode:
		if icmp {
			return one(p.ICMPCode)
		}
	case TCPFlags:
		if p.Protocol == unix.IPPROTO_TCP {
			return one(p.TCPFlags)
		}
	case IIFName:
		return []Value{Name(w.in)}, true
	case OIFName:
		if !w.outKnown && w.hook != Prerouting && w.hook != Ingress {
			return w.notKnown("it is not known by which interface the packet leaves")
		}
		return []Value{Name(w.out)}, true
	case SKUID, SKGID:
		if w.taken { // the packet has the listener's socket
			return w.notKnown("the user of the transparent listener is not known")
		}
		return w.owner(f)
	case Mark:
		return one(w.mark)
	default:
		return w.connection(f)
	}
	return none()
}

func (w *walk) icmp() bool {
	return w.packet.Protocol == unix.IPPROTO_ICMP || w.packet.Protocol == unix.IPPROTO_ICMPV6
}

// owner is who has the packet's socket.
func (w *walk) owner(f Field) ([]Value, bool) {
	switch {
	case !w.socket:
		return none()
	case f == SKUID:
		return one(w.packet.UID)
	}
	return one(w.packet.GID)
}

func (w *walk) addr(a netip.AddrPort, which string) ([]Value, bool) {
	if !a.Addr().IsValid() {
		return w.notKnown("the " + which + " address is not known")
	}
	return []Value{Addr(a.Addr())}, true
}

func (w *walk) port16(a netip.AddrPort, which string) ([]Value, bool) {
	switch {
	case !w.packet.hasPorts():
		return none()
	case a.Port() == 0:
		return w.notKnown("the " + which + " port is not known")
	}
	return one(a.Port())
}

// connection evaluates what connection tracking and routing know.
func (w *walk) connection(f Field) ([]Value, bool) {
	switch f {
	case CTState:
		return one(w.state())
	case SaddrType:
		return w.addrType(w.src.Addr(), "")
	case DaddrType:
		return w.addrType(w.dst.Addr(), "")
	case SaddrTypeIIF:
		return w.addrType(w.src.Addr(), w.in)
	case DaddrTypeIIF:
		return w.addrType(w.dst.Addr(), w.in)
	case SaddrTypeOIF:
		return w.addrType(w.src.Addr(), w.out)
	case DaddrTypeOIF:
		return w.addrType(w.dst.Addr(), w.out)
	default:
	}
	if w.ct != tracked {
		return none()
	}
	switch f {
	case CTMark:
		return one(w.ctMark)
	case CTStatus:
		return one(w.status)
	case CTDir:
		return one(uint8(0))
	case CTZone:
		return one(w.zone)
	case CTOrigSaddr:
		return w.addr(w.original[source], "connection's source")
	case CTOrigDaddr:
		return w.addr(w.original[destination], "connection's destination")
	case CTOrigSport:
		if w.icmp() {
			return w.notKnown("the number of the ICMP packet is not known")
		}
		return w.port16(w.original[source], "connection's source")
	case CTOrigDport:
		if w.icmp() { // the kernel has type and code in the place of the port
			return one(uint16(w.packet.ICMPType)<<8 | uint16(w.packet.ICMPCode))
		}
		return w.port16(w.original[destination], "connection's destination")
	default:
	}
	return w.notKnown("this field is not known")
}

// state is the packet's state as rules see it.
func (w *walk) state() uint32 {
	switch w.ct {
	case untracked:
		return CTInvalid
	case template:
		return CTNew
	case notrack:
		return CTUntracked
	case tracked:
	}
	return w.packet.State
}

func (c Const) eval(*walk) ([]Value, bool) { return c, true }

func (c Concat) eval(w *walk) ([]Value, bool) {
	all := make([]Value, 0, len(c))
	for _, e := range c {
		values, known := e.eval(w)
		if !known || values == nil {
			return nil, known
		}
		all = append(all, values...)
	}
	return all, true
}

// calculate evaluates an operation on two numbers.
func calculate(w *walk, a, b Expr, f func(a, b uint64) uint64) ([]Value, bool) {
	x, known := a.eval(w)
	if !known || len(x) == 0 {
		return nil, known
	}
	y, known := b.eval(w)
	if !known || len(y) == 0 {
		return nil, known
	}
	if x[0].Addr.IsValid() && y[0].Addr.IsValid() {
		return []Value{Addr(masked(x[0].Addr, y[0].Addr))}, true
	}
	return []Value{{Num: f(x[0].Num, y[0].Num)}}, true
}

func masked(a, mask netip.Addr) netip.Addr {
	x, m := a.AsSlice(), mask.AsSlice()
	if len(x) != len(m) {
		return a
	}
	for i := range x {
		x[i] &= m[i]
	}
	out, _ := netip.AddrFromSlice(x)
	return out
}

func (e And) eval(w *walk) ([]Value, bool) {
	return calculate(w, e.A, e.B, func(a, b uint64) uint64 { return a & b })
}

func (e Or) eval(w *walk) ([]Value, bool) {
	return calculate(w, e.A, e.B, func(a, b uint64) uint64 { return a | b })
}

func (e Xor) eval(w *walk) ([]Value, bool) {
	return calculate(w, e.A, e.B, func(a, b uint64) uint64 { return a ^ b })
}

func (e Shift) eval(w *walk) ([]Value, bool) {
	return calculate(w, e.A, Const{{}}, func(a, _ uint64) uint64 {
		if e.By < 0 {
			return a >> -e.By
		}
		return a << e.By & (1<<bits.UintSize/2 - 1)
	})
}

func (l Lookup) eval(w *walk) ([]Value, bool) {
	key, known := l.Key.eval(w)
	if !known || key == nil {
		return nil, known
	}
	if l.Map.Unknown != "" {
		return w.notKnown(l.Map.Unknown)
	}
	if e := w.find(l.Map, key); e != nil {
		return e.Data, true
	}
	return none()
}

func (n Numgen) eval(w *walk) ([]Value, bool) {
	if n.Mod > maxWays || w.peeking {
		return w.notKnown("a number below " + Number(n.Mod).String() + " is left to chance")
	}
	odds := make([]float64, max(n.Mod, 1))
	for i := range odds {
		odds[i] = 1 / float64(len(odds))
	}
	return one(n.Offset + uint32(w.chance(odds)))
}

func (u UnknownExpr) eval(w *walk) ([]Value, bool) {
	return w.notKnown("it is not known what " + u.Text + " is")
}
