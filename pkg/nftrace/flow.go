package nftrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow is the packets to trace, as they are when they first come to a hook: ahead of any translation. Only those from From to To
// are, not the answers. A zero field stands for all of its kind; an address of zeros, 0.0.0.0 or ::, for all of its family.
type Flow struct {
	Protocol uint8 // such as unix.IPPROTO_TCP
	From, To netip.AddrPort
}

// String is such as "protocol 6 from 10.0.0.2 to 1.1.1.1:80".
func (f Flow) String() string {
	return fmt.Sprintf("protocol %s from %s to %s", anyOr(f.Protocol != 0, f.Protocol), end(f.From), end(f.To))
}

func anyOr(known bool, v any) string {
	if !known {
		return "any"
	}
	return fmt.Sprint(v)
}

func end(e netip.AddrPort) string {
	address := anyOr(e.Addr().IsValid(), e.Addr())
	switch {
	case e.Port() == 0:
		return address
	case e.Addr().Is6():
		return e.String()
	}
	return fmt.Sprintf("%s:%d", address, e.Port())
}

// rule is what matches the flow and turns tracing on.
func (f Flow) rule() (expressions, error) {
	var e expressions
	from, to := f.From.Addr().Unmap(), f.To.Addr().Unmap()
	if from.IsValid() && to.IsValid() && from.BitLen() != to.BitLen() {
		return nil, errors.New("source and destination are of different families")
	}
	if (f.From.Port() != 0 || f.To.Port() != 0) && !hasPorts[f.Protocol] {
		return nil, errors.New("a port needs a protocol that has ports: tcp, udp or sctp")
	}
	source, destination := uint32(12), uint32(16)
	switch {
	case from.Is6() || to.Is6():
		source, destination = 8, 24
		e.meta(unix.NFT_META_NFPROTO, unix.NFPROTO_IPV6)
	case from.Is4() || to.Is4():
		e.meta(unix.NFT_META_NFPROTO, unix.NFPROTO_IPV4)
	}
	if f.Protocol != 0 {
		e.meta(unix.NFT_META_L4PROTO, f.Protocol)
	}
	e.address(source, from)
	e.address(destination, to)
	e.port(0, f.From.Port())
	e.port(2, f.To.Port())
	e.trace()
	return e, nil
}

var hasPorts = map[uint8]bool{unix.IPPROTO_TCP: true, unix.IPPROTO_UDP: true, unix.IPPROTO_SCTP: true}

// address requires one address at an offset of the network header.
func (e *expressions) address(offset uint32, a netip.Addr) {
	if a.IsValid() && !a.IsUnspecified() {
		e.payload(unix.NFT_PAYLOAD_NETWORK_HEADER, offset, a.AsSlice())
	}
}

// port requires a port at an offset of the transport header.
func (e *expressions) port(offset uint32, port uint16) {
	if port != 0 {
		e.payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, offset, binary.BigEndian.AppendUint16(nil, port))
	}
}
