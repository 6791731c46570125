package trace

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Direction says where a packet begins.
type Direction uint8

// A packet that a process of the namespace sends goes Out, one that arrives on an interface comes In.
const (
	Out Direction = iota + 1
	In
)

// Loopback is the name of the loopback interface.
const Loopback = "lo"

// Packet is a packet as it enters the namespace's network stack. Its family is that of Dst.
type Packet struct {
	Direction Direction
	// Interface is the one that the packet comes In on.
	Interface string
	// ToInterface is the one that it leaves by where Routing does not tell.
	ToInterface string
	Protocol    uint8 // IPPROTO_*
	// Src may lack its port, which is then unknown, and a packet that goes Out may lack its source: the route chooses it. The ports of
	// ICMP are 0.
	Src, Dst           netip.AddrPort
	ICMPType, ICMPCode uint8
	// TCPFlags are those of a connection's first packet (SYN) or of a later one (ACK), unless set.
	TCPFlags uint8
	// UID and GID are those with which the sending socket was created. They mean nothing for a packet that comes In, or with
	// NoSocket, which is for what the kernel itself sends, such as a reset.
	UID, GID uint32
	NoSocket bool
	// Mark and CTMark are the marks of the packet and its connection at the start.
	Mark, CTMark uint32
	// State is CTNew unless set. Chains of type nat see the first packet of a connection only. Connection tracking translates the
	// later ones, which are CTEstablished: a walk does not.
	State uint32
}

func (p Packet) family() Family {
	if p.Dst.Addr().Is4() {
		return IP
	}
	return IP6
}

// protocolNames are the protocols that a packet can be asked for by name.
var protocolNames = map[uint8]string{
	unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "ipv6-icmp",
}

// ProtocolName returns the number itself if a protocol has no name here.
func ProtocolName(number uint8) string {
	return cmp.Or(protocolNames[number], strconv.Itoa(int(number)))
}

// Endpoint prints an address with its port, if it has one. An address that is not known is "".
func Endpoint(a netip.AddrPort) string {
	switch {
	case !a.Addr().IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// String is the packet in one line: "out tcp 10.0.0.2:40000 -> 1.1.1.1:80, uid 1000, gid 0".
func (p Packet) String() string {
	line := ProtocolName(p.Protocol) + " "
	if p.Direction == In {
		line = "in " + p.Interface + " " + line
	} else {
		line = "out " + line
	}
	if p.Src.Addr().IsValid() {
		line += Endpoint(p.Src) + " "
	}
	line += "-> " + Endpoint(p.Dst)
	if p.Direction == Out && !p.NoSocket {
		line += fmt.Sprintf(", uid %d, gid %d", p.UID, p.GID)
	}
	if p.Mark != 0 {
		line += fmt.Sprintf(", mark %#x", p.Mark)
	}
	if p.State != 0 && p.State != CTNew {
		line += ", " + stateNames[uint64(p.State)]
	}
	return line
}

func (p Packet) hasPorts() bool {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_DCCP, unix.IPPROTO_UDPLITE:
		return true
	}
	return false
}

// normal checks the packet and fills in what it leaves out.
func (p Packet) normal() (Packet, error) {
	p.Src, p.Dst = unmap(p.Src), unmap(p.Dst)
	switch {
	case p.Direction != Out && p.Direction != In:
		return p, fmt.Errorf("the packet goes neither out nor in")
	case !p.Dst.Addr().IsValid():
		return p, fmt.Errorf("the packet has no destination")
	case p.Direction == In && !p.Src.Addr().IsValid():
		return p, fmt.Errorf("the packet comes in, but has no source")
	case p.Direction == In && p.Interface == "":
		return p, fmt.Errorf("the packet comes in, but on no interface")
	case p.Src.Addr().IsValid() && p.Src.Addr().Is4() != p.Dst.Addr().Is4():
		return p, fmt.Errorf("source %s and destination %s are not of one address family", p.Src.Addr(), p.Dst.Addr())
	case p.Protocol == 0:
		return p, fmt.Errorf("the packet has no protocol")
	}
	if p.State == 0 {
		p.State = CTNew
	}
	if p.TCPFlags == 0 && p.Protocol == unix.IPPROTO_TCP {
		p.TCPFlags = flagACK
		if p.State == CTNew {
			p.TCPFlags = flagSYN
		}
	}
	return p, nil
}

const (
	flagSYN = 0x02
	flagACK = 0x10
)

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
