// Package trace walks a packet through a Ruleset as the kernel does, and names every rule that the packet meets. It is
// pure: it sends nothing and asks no kernel.
//
// It does not know foreign chains, the tables filter and security, or the hooks INPUT, FORWARD and POSTROUTING, in which a
// Ruleset has no rules.
package trace

import (
	"fmt"
	"net/netip"

	"github.com/detour-cni/detour/pkg/rules"
)

// Direction says where a packet begins.
type Direction uint8

// A packet that a process in the pod sends goes Out, one that arrives on an interface comes In.
const (
	Out Direction = iota + 1
	In
)

// String returns "out" or "in".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// New is the connection tracking state of a connection's first packet.
const New rules.State = "NEW"

// Loopback is the name of the loopback interface.
const Loopback = "lo"

// Packet is a packet as it enters the pod's network stack. Its family is that of Src and Dst.
type Packet struct {
	Direction Direction
	Protocol  rules.Protocol
	Src, Dst  netip.AddrPort
	// Interface is the one that the packet came in on, or that its route leads out on. A packet from a process to one of the
	// pod's own addresses goes out on lo, whatever Interface says.
	Interface string
	// Local are the addresses of each of the pod's interfaces, the primary one first. It may lack those of lo.
	Local map[string][]netip.Addr
	// UID and GID are those with which the sending socket was created. They mean nothing for a packet that comes In, or with
	// NoSocket, which is for what the kernel itself sends, such as a reset.
	UID, GID uint32
	NoSocket bool
	// Mark and ConnMark are the marks of the packet and its connection at the start.
	Mark, ConnMark uint32
	// GateOpen says that an earlier packet has met rules.OpenGate.
	GateOpen bool
	// State is New unless set. Table nat sees the first packet of a connection only. Connection tracking translates the later
	// ones, which are Established: a walk does not.
	State rules.State
}

// String is the packet in one line: "out tcp 10.0.0.2:40000 -> 1.1.1.1:80 on eth0, uid 1000, gid 0".
func (p Packet) String() string {
	line := fmt.Sprintf("%s %s %s -> %s on %s", p.Direction, p.Protocol, p.Src, p.Dst, p.Interface)
	if p.Direction == Out && !p.NoSocket {
		line += fmt.Sprintf(", uid %d, gid %d", p.UID, p.GID)
	}
	if p.State != "" && p.State != New {
		line += ", " + string(p.State)
	}
	return line
}

func (p Packet) check() error {
	switch {
	case p.Direction != Out && p.Direction != In:
		return fmt.Errorf("packet %s: neither out nor in", p)
	case !p.Dst.IsValid() || !p.Src.IsValid() || rules.Of(p.Src.Addr()) != rules.Of(p.Dst.Addr()):
		return fmt.Errorf("packet %s: source and destination must be addresses of one family", p)
	case p.Protocol == "" || p.Interface == "":
		return fmt.Errorf("packet %s: a protocol and an interface are needed", p)
	}
	return nil
}

// Kind says what becomes of a packet.
type Kind uint8

const (
	// Direct packets go where they were sent to.
	Direct Kind = iota + 1
	// Redirected packets go to a port of the pod.
	Redirected
	// Translated packets go to another address.
	Translated
	// TProxied packets go to a transparent listener, which a walk assumes to exist.
	TProxied
	// Dropped packets end.
	Dropped
	// Reset connections break: nat translates their first packet after TPROXY took it, and TPROXY takes the later ones
	// untranslated, for another connection.
	Reset
)

// Verdict is how and where a packet ends.
type Verdict struct {
	Kind Kind
	// Addr is the packet's final destination.
	Addr netip.AddrPort
	// Local says that the packet ends in the pod; otherwise it leaves the pod, or is forwarded.
	Local bool
	// Port is the port in the pod of the listener that gets a Redirected or TProxied packet.
	Port uint16
	// Mark and ConnMark are the final marks, and Zone is the zone in which the connection is tracked.
	Mark, ConnMark uint32
	Zone           uint16
	// GateOpen says that the gate is open for later packets.
	GateOpen bool
}

// String says where the packet ends: "redirected to port 15001", "direct to 1.1.1.1:80, outside the pod".
func (v Verdict) String() string {
	where := ", outside the pod"
	if v.Local {
		where = ", in the pod"
	}
	switch v.Kind {
	case Direct:
		return "direct to " + v.Addr.String() + where
	case Redirected:
		return fmt.Sprintf("redirected to port %d", v.Port)
	case Translated:
		return "translated to " + v.Addr.String() + where
	case TProxied:
		return fmt.Sprintf("handed to the transparent listener at port %d, for %s", v.Port, v.Addr)
	case Dropped:
		return "dropped"
	case Reset:
		return "reset: nat translates what TPROXY has taken"
	}
	return fmt.Sprintf("Kind(%d)", v.Kind)
}
