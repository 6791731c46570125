package trace

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Step is a rule that the packet met.
type Step struct {
	// Hook is the base chain that the packet was in.
	Hook string
	// Depth is how many jumps led to the rule's chain.
	Depth int
	// Number is the rule's place in its chain among the rules of the packet's family, from 1.
	Number int
	Rule   rules.Rule
	// Missed is the first match that didn't hold; nil if all did and the rule's target happened.
	Missed rules.Match
}

// Path is every rule that a packet met, in order, and where the packet ends.
type Path struct {
	Packet  Packet
	Steps   []Step
	Verdict Verdict
}

// maxDepth is how deep chains may call each other (NFT_JUMP_STACK_SIZE).
const maxDepth = 16

// Walk walks the packet through the ruleset. A step is one rule of the ruleset: for one step per line of iptables, walk
// iptext.For of the packet's family. It is an error if the ruleset has an unknown match or target, or a rule that no kernel
// accepts, or if the packet can't exist. With an error, the path ends where it occurred.
func Walk(rs rules.Ruleset, p Packet) (Path, error) {
	w := &walk{rs: rs, path: Path{Packet: p}, s: start(p)}
	err := errors.Join(p.check(), check(rs))
	if err == nil {
		err = w.walk()
	}
	if err != nil {
		return w.path, fmt.Errorf("walk: %w", err)
	}
	return w.path, nil
}

// walk is a packet on its path.
type walk struct {
	rs   rules.Ruleset
	s    state
	zone uint16
	lost bool // nat has translated a packet that TPROXY took
	path Path
}

func start(p Packet) state {
	s := state{
		protocol: p.Protocol, src: unmap(p.Src), dst: unmap(p.Dst),
		socket: p.Direction == Out && !p.NoSocket, uid: p.UID, gid: p.GID,
		mark: p.Mark, connMark: p.ConnMark, ctState: p.State, gateOpen: p.GateOpen,
	}
	if s.ctState == "" {
		s.ctState = New
	}
	return s
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func (w *walk) walk() error {
	w.path.Verdict.Kind = Direct
	travel := w.arrive
	if w.path.Packet.Direction == Out {
		travel = w.send
	}
	if err := travel(); err != nil {
		return err
	}
	v := &w.path.Verdict
	v.Addr, v.Mark, v.ConnMark, v.Zone, v.GateOpen = w.s.dst, w.s.mark, w.s.connMark, w.zone, w.s.gateOpen
	if v.Kind == TProxied && !v.Local {
		v.Kind = Dropped // the kernel does not forward a packet that a socket has
	}
	if v.Kind == TProxied && w.lost {
		reset, err := w.resets()
		if reset {
			v.Kind = Reset
		}
		return err
	}
	return nil
}

// send takes the packet of a local process through OUTPUT and, if it stays in the pod, back in on lo.
func (w *walk) send() error {
	w.s.out = w.path.Packet.Interface
	if w.local() {
		w.s.out = Loopback
	}
	if err := w.hook(rules.Output); err != nil || w.ended() {
		return err
	}
	// A new mark or destination may have changed the route. The rules saw the interface of the first route even so.
	w.path.Verdict.Local = w.local()
	if !w.path.Verdict.Local {
		return nil
	}
	w.s.in, w.s.out, w.s.socket = Loopback, "", false
	return w.hook(rules.Prerouting)
}

// arrive takes in a packet from an interface.
func (w *walk) arrive() error {
	w.s.in = w.path.Packet.Interface
	if err := w.hook(rules.Prerouting); err != nil || w.ended() {
		return err
	}
	w.path.Verdict.Local = w.local()
	return nil
}

// local reports whether the packet's route leads into the pod: by its destination, or by its mark.
func (w *walk) local() bool {
	dst := w.s.dst.Addr()
	for _, addrs := range w.path.Packet.Local {
		if slices.Contains(addrs, dst) {
			return true
		}
	}
	marked := func(r rules.LocalRoute) bool { return r.Mark == w.s.mark }
	return dst.IsLoopback() || within(w.s.dst, w.rs.Setup.Loopback) || slices.ContainsFunc(w.rs.Setup.Routes, marked)
}

func (w *walk) ended() bool { return w.path.Verdict.Kind == Dropped }

// hook takes the packet through the base chain of each table.
func (w *walk) hook(name string) error {
	back := w.s.ct == tracked // after OUTPUT, connection tracking and nat are done with the packet
	for _, t := range rules.Tables {
		if t == rules.Nat && (back || !w.begins()) {
			continue
		}
		if _, err := w.chain(rules.Chain{Table: t, Name: name}, name, 0); err != nil || w.ended() {
			return err
		}
		if t == rules.Raw {
			w.s.ct = untracked
			if w.s.ctState != rules.Invalid {
				w.s.ct = tracked
			}
		}
	}
	return nil
}

// begins reports whether nat looks at the packet.
func (w *walk) begins() bool {
	return w.s.ct == tracked && (w.s.ctState == New || w.s.ctState == rules.Related)
}

// chain takes the packet through a chain and those it calls; done means that the table is done with the packet.
func (w *walk) chain(c rules.Chain, hook string, depth int) (done bool, err error) {
	if depth > maxDepth {
		return true, fmt.Errorf("table %s chain %s: more than %d jumps deep: a loop", c.Table, c.Name, maxDepth)
	}
	number := 0
	for _, r := range w.rs.Rules {
		if r.Chain != c || !r.Concerns(rules.Of(w.s.dst.Addr())) {
			continue
		}
		number++
		step := Step{Hook: hook, Depth: depth, Number: number, Rule: r}
		if step.Missed, err = w.missed(r, hook); err != nil {
			return true, err
		}
		w.path.Steps = append(w.path.Steps, step)
		if step.Missed != nil {
			continue
		}
		if _, ok := r.Target.(rules.Return); ok {
			return depth == 0, nil
		}
		if done, err = w.target(r, hook, depth); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

// missed returns the first match that doesn't hold.
func (w *walk) missed(r rules.Rule, hook string) (rules.Match, error) {
	for _, m := range r.Matches {
		switch m.(type) {
		case rules.OwnerUID, rules.OwnerGID:
			if hook == rules.Prerouting {
				return nil, fmt.Errorf("table %s chain %s: PREROUTING has no owner to match", r.Chain.Table, r.Chain.Name)
			}
		default:
		}
		if ok, err := w.s.matches(m); err != nil || !ok {
			return m, err
		}
	}
	return nil, nil
}

// target applies the rule's target, except Return.
func (w *walk) target(r rules.Rule, hook string, depth int) (done bool, err error) {
	s := &w.s
	switch t := r.Target.(type) {
	case rules.Return: // its caller's
	case rules.Jump:
		return w.chain(rules.Chain{Table: r.Chain.Table, Name: string(t)}, hook, depth+1)
	case rules.Accept:
		return true, nil
	case rules.Drop:
		w.path.Verdict.Kind = Dropped
		return true, nil
	case rules.Redirect:
		w.translate(Redirected, netip.AddrPortFrom(w.redirectAddr(hook), uint16(t)))
		return true, nil
	case rules.DNAT:
		port := t.Port
		if port == 0 {
			port = s.dst.Port()
		}
		w.translate(Translated, netip.AddrPortFrom(t.Addr, port))
		return true, nil
	case rules.TProxy:
		if hook != rules.Prerouting {
			return true, fmt.Errorf("table %s chain %s: TPROXY works in PREROUTING only", r.Chain.Table, r.Chain.Name)
		}
		w.path.Verdict.Kind, w.path.Verdict.Port, s.mark = TProxied, t.Port, t.Mark
		return true, nil
	case rules.SetMark:
		s.mark = uint32(t)
	case rules.SaveMark:
		if s.ct == tracked {
			s.connMark = s.mark
		}
	case rules.RestoreMark:
		if s.ct == tracked {
			s.mark = s.connMark
		}
	case rules.Zone:
		if s.ct == untracked { // the first zone counts, and a connection keeps its own
			s.ct, w.zone = template, uint16(t)
		}
	case rules.OpenGate:
		s.gateOpen = true
	}
	return false, nil
}

// translate changes the destination. A packet that TPROXY has taken goes to its listener even so.
func (w *walk) translate(k Kind, to netip.AddrPort) {
	if w.path.Verdict.Kind == TProxied {
		w.lost = w.lost || w.s.dst != to
		k = TProxied
	} else if k == Redirected {
		w.path.Verdict.Port = to.Port()
	}
	w.path.Verdict.Kind, w.s.dst = k, to
}

// redirectAddr is the address to which REDIRECT sends the packet: that of the interface.
func (w *walk) redirectAddr(hook string) netip.Addr {
	f := rules.Of(w.s.dst.Addr())
	if hook == rules.Output {
		return loopback[f]
	}
	for _, a := range w.path.Packet.Local[w.s.in] {
		if rules.Of(a) == f {
			return a
		}
	}
	return w.s.dst.Addr()
}

var loopback = map[rules.Family]netip.Addr{rules.IPv4: netip.AddrFrom4([4]byte{127, 0, 0, 1}), rules.IPv6: netip.IPv6Loopback()}

// resets reports whether TPROXY takes the connection's later packets as well. They are not translated yet at that point, so
// they do not belong to the connection that the listener has accepted.
func (w *walk) resets() (bool, error) {
	later := w.path.Packet
	later.State, later.ConnMark = rules.Established, w.s.connMark
	path, err := Walk(w.rs, later)
	return path.Verdict.Kind == TProxied, err
}
