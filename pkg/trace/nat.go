package trace

import (
	"net/netip"
)

func (n NAT) run(w *walk) control {
	if n.Only != "" && n.Only != w.family {
		return goOn
	}
	w.verdict = Verdict{Kind: Accept}
	if n.Kind == NetMap {
		n.Kind = SNAT
		if w.hook == Prerouting || w.hook == Output {
			n.Kind = DNAT
		}
	}
	m := destination
	if n.Kind == SNAT || n.Kind == Masquerade {
		m = source
	}
	if w.ct != tracked {
		return ended
	}
	to, ok := n.target(w)
	if !ok {
		return missed
	}
	if w.bound[m] {
		return ended
	}
	w.bound[m] = true
	if m == source {
		w.translateSource(to)
	} else {
		w.translateDestination(n, to)
	}
	return ended
}

// target is the packet's new address and port for its destination or source. ok is false if the rule does not match after all, because a
// map has nothing for the packet.
func (n NAT) target(w *walk) (to netip.AddrPort, ok bool) {
	old := w.dst
	switch n.Kind {
	case SNAT:
		old = w.src
	case Masquerade:
		return netip.AddrPortFrom(w.masqueradeAddr(), w.src.Port()), true
	case Redirect:
		old = netip.AddrPortFrom(w.redirectAddr(), w.dst.Port())
	default:
	}
	if n.Net.IsValid() {
		return netip.AddrPortFrom(intoNet(old.Addr(), n.Net), old.Port()), true
	}
	if n.To == nil {
		return old, true
	}
	values, known := n.To.eval(w)
	if !known {
		w.assume("where NAT leads", w.missing, ruleDecision(w.current), []string{"the new address is not known"})
		return netip.AddrPort{}, true
	}
	if len(values) == 0 {
		return old, false
	}
	addr, port := old.Addr(), old.Port()
	for _, v := range values {
		if v.Addr.IsValid() {
			addr = v.Addr
		} else if p := uint16(v.Num); n.MaxPort == 0 || port < p || port > n.MaxPort {
			port = p
		}
	}
	return netip.AddrPortFrom(addr, port), true
}

func intoNet(a netip.Addr, net netip.Prefix) netip.Addr {
	in, out := a.AsSlice(), net.Masked().Addr().AsSlice()
	for bit := net.Bits(); bit < len(out)*8; bit++ {
		out[bit/8] |= in[bit/8] & (0x80 >> (bit % 8))
	}
	addr, _ := netip.AddrFromSlice(out)
	return addr
}

func (w *walk) translateSource(to netip.AddrPort) {
	if w.src == to {
		return
	}
	w.status |= StatusSNAT
	w.src = to
	if to.Addr().IsValid() {
		w.change("source becomes %s", Endpoint(to))
	} else {
		w.change("source becomes an address that is not known")
	}
}

// translateDestination changes the destination. A packet that TPROXY has taken goes to its listener even so.
func (w *walk) translateDestination(n NAT, to netip.AddrPort) {
	if w.dst != to {
		w.status |= StatusDNAT
		w.lost = w.lost || w.taken
		w.change("destination becomes %s", Endpoint(to))
	}
	before := w.dst
	w.dst = to
	if !w.taken {
		w.translated = ruleDecision(w.current)
	}
	if n.Kind == Redirect {
		w.port, w.stays = to.Port(), true
	}
	if w.hook == Output && before.Addr() != to.Addr() {
		w.reroute()
	}
}

// redirectAddr is the address to which REDIRECT sends the packet: that of the interface that it came in on.
func (w *walk) redirectAddr() netip.Addr {
	if w.hook == Output {
		if w.family == IP {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.IPv6Loopback()
	}
	if a, ok := w.ns.Routing.primary(w.in, w.family); ok {
		return a
	}
	return w.dst.Addr()
}
