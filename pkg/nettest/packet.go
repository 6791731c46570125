package nettest

import (
	"fmt"
	"net/netip"
	"strings"
)

// AppUID is the UID of the application in the pod where a packet names none.
const AppUID = 1000

// Direction says who dials.
type Direction uint8

// The application in the pod dials Out; outside dials In.
const (
	Out Direction = iota + 1
	In
)

// Families is a set of address families.
type Families uint8

// The sets of families.
const (
	IPv4 Families = 1 << iota
	IPv6
	Both = IPv4 | IPv6
)

// Kind says who answers a connection.
type Kind uint8

// A connection ends at the sidecar proxy, at a server outside, at the application in the pod, or not at all.
const (
	ToProxy Kind = iota + 1
	ToOutside
	ToApp
	Failed
)

// Outcome is where a connection is to end. Outcomes may be compared with ==.
type Outcome struct {
	Kind Kind
	// ProxyPort is the proxy's port, for ToProxy only.
	ProxyPort uint16
	// Err is one of the Err values of this package, for Failed only.
	Err error
}

// String writes the outcome as in the packet language.
func (o Outcome) String() string {
	switch o.Kind {
	case ToProxy:
		return fmt.Sprintf("proxy %d", o.ProxyPort)
	case ToOutside:
		return "outside"
	case ToApp:
		return "app"
	case Failed:
		return failure(o.Err)
	}
	return fmt.Sprintf("Kind(%d)", o.Kind)
}

func failure(err error) string { return "error: " + err.Error() }

// Packet is one line of the packet language: a TCP connection and what is wanted of it. Packets may be compared with ==.
type Packet struct {
	Direction Direction
	// Families are the destination's; In may have both.
	Families Families
	// Dst is what is dialed. For In it has only a port: the address is the pod's.
	Dst netip.AddrPort
	// UID is the owner of the dialing socket, 0 for In.
	UID  uint32
	Want Outcome
}

// String returns the packet's line in canonical form, which ParsePackets reads back as the same packet.
func (p Packet) String() string {
	var line strings.Builder
	switch {
	case p.Direction == Out:
		fmt.Fprintf(&line, "out %s", p.Dst)
	case p.Families == IPv4:
		fmt.Fprintf(&line, "in4 %d", p.Dst.Port())
	case p.Families == IPv6:
		fmt.Fprintf(&line, "in6 %d", p.Dst.Port())
	default:
		fmt.Fprintf(&line, "in %d", p.Dst.Port())
	}
	if p.Direction == Out && p.UID != AppUID {
		fmt.Fprintf(&line, " uid=%d", p.UID)
	}
	fmt.Fprintf(&line, " -> %s", p.Want)
	return line.String()
}
