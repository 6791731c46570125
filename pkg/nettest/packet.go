package nettest

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// AppUID and AppGID are the user and group of the application in the pod where a packet names none.
const (
	AppUID = 1000
	AppGID = 1000
)

// Direction says who dials.
type Direction uint8

// The application in the pod dials Out; outside dials In; the virtual machine behind the pod is its Guest.
const (
	Out Direction = iota + 1
	In
	Guest
)

// Protocol is a transport protocol; the zero value is TCP.
type Protocol uint8

// The protocols.
const (
	TCP Protocol = iota
	UDP
)

// String is the protocol's name, tcp or udp.
func (p Protocol) String() string {
	if p == UDP {
		return "udp"
	}
	return "tcp"
}

// Families is a set of address families.
type Families uint8

// The sets of families.
const (
	IPv4 Families = 1 << iota
	IPv6
	Both = IPv4 | IPv6
)

// Kind says who answers a connection or a datagram.
type Kind uint8

// It ends at the sidecar proxy, at a server outside, at the application in the pod, or not at all.
const (
	ToProxy Kind = iota + 1
	ToOutside
	ToApp
	Failed
)

// Outcome is where a packet is to end. Outcomes may be compared with ==.
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

// Packet is one line of the packet language: a TCP connection or a UDP datagram, and what is wanted of it. Packets may be
// compared with ==.
type Packet struct {
	Direction Direction
	Protocol  Protocol
	// Families are the destination's; In may have both.
	Families Families
	// Dst is what is dialed. For In it has only a port: the address is the pod's.
	Dst netip.AddrPort
	// Via is the pod's interface whose address is dialed, for In only: Net1Link, or "" for PodLink.
	Via string
	// UID and GID own the dialing socket. They are 0 for In and Guest.
	UID, GID uint32
	// Src is what the dialing socket is bound to, for Out only. The zero Addr leaves it to the kernel.
	Src  netip.Addr
	Want Outcome
}

// String returns the packet's line in canonical form, which ParsePackets reads back as the same packet.
func (p Packet) String() string {
	words := []string{p.direction()}
	if p.Protocol == UDP {
		words = append(words, "udp")
	}
	if p.Via != "" {
		words = append(words, "via="+p.Via)
	}
	if p.Direction == In {
		words = append(words, strconv.Itoa(int(p.Dst.Port())))
	} else {
		words = append(words, p.Dst.String())
	}
	words = append(append(words, p.options()...), "->", p.Want.String())
	return strings.Join(words, " ")
}

func (p Packet) direction() string {
	switch {
	case p.Direction == Out:
		return "out"
	case p.Direction == Guest:
		return "guest"
	case p.Families == IPv4:
		return "in4"
	case p.Families == IPv6:
		return "in6"
	}
	return "in"
}

// options are the words after the destination, without those that say what is so anyway.
func (p Packet) options() []string {
	var words []string
	if p.Direction == Out && p.UID != AppUID {
		words = append(words, fmt.Sprintf("uid=%d", p.UID))
	}
	if p.Direction == Out && p.GID != AppGID {
		words = append(words, fmt.Sprintf("gid=%d", p.GID))
	}
	if p.Src.IsValid() {
		words = append(words, "src="+p.Src.String())
	}
	return words
}
