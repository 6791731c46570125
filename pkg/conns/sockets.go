package conns

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// socket is a TCP or UDP socket of the namespace.
type socket struct {
	protocol      string
	local, remote netip.AddrPort // remote has port 0 if the socket is not connected
	uid           uint32
	// inode is 0 for a socket that no process holds any more, such as one in TIME_WAIT. Its uid means nothing then.
	inode uint32
}

// sockets are the namespace's, by what identifies a connection: protocol, local and remote address.
type sockets map[string]map[Tuple]socket

// end returns the socket at the end of a connection that sends t.
func (s sockets) end(protocol string, t Tuple) (socket, bool) {
	own := s[protocol]
	for _, key := range []Tuple{
		t,
		{t.Source, netip.AddrPort{}}, // UDP sockets need no peer
		{anyOf(t.Source), netip.AddrPort{}},
		{netip.AddrPortFrom(netip.IPv6Unspecified(), t.Source.Port()), netip.AddrPort{}}, // which may serve both families
	} {
		found, ok := own[key]
		if ok && (protocol == "udp" || key == t) {
			return found, found.inode != 0
		}
	}
	return socket{}, false
}

// listener returns the socket that accepts connections, or receives datagrams, at an address.
func (s sockets) listener(protocol string, at netip.AddrPort) (socket, bool) {
	for _, key := range []netip.AddrPort{at, anyOf(at), netip.AddrPortFrom(netip.IPv6Unspecified(), at.Port())} {
		if found, ok := s[protocol][Tuple{Source: key}]; ok {
			return found, true
		}
	}
	return socket{}, false
}

func anyOf(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Is4() {
		return netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	return netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port())
}

// Sizes and the request's layout are linux/inet_diag.h's: struct inet_diag_req_v2 and struct inet_diag_msg.
const (
	sockDiagByFamily = 20
	diagRequest      = 56
	diagMessage      = 72
	diagSource       = 4  // struct inet_diag_sockid: ports and addresses
	diagUID          = 64 // and the inode after it
	allStates        = 0xfff
)

// readSockets lists the sockets of the calling thread's network namespace.
func readSockets() (sockets, error) {
	c, err := netlink.Open(unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	all := sockets{}
	for number, protocol := range protocols {
		all[protocol] = map[Tuple]socket{}
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			request := make([]byte, diagRequest)
			request[0], request[1] = family, number
			binary.NativeEndian.PutUint32(request[4:], allStates)
			err := dump(c, sockDiagByFamily, request, func(body []byte) {
				if s, ok := parseSocket(body); ok {
					s.protocol = protocol
					all[protocol][Tuple{s.local, s.remote}] = s
				}
			})
			if err != nil {
				return nil, fmt.Errorf("list %s sockets: %w", protocol, err)
			}
		}
	}
	return all, nil
}

func parseSocket(b []byte) (s socket, ok bool) {
	if len(b) < diagMessage {
		return s, false
	}
	size := 4
	if b[0] == unix.AF_INET6 {
		size = 16
	}
	port := func(at int) uint16 { return binary.BigEndian.Uint16(b[diagSource+at:]) }
	addr := func(at int) netip.Addr {
		a, _ := netip.AddrFromSlice(b[diagSource+at : diagSource+at+size])
		return a.Unmap() // a socket of both families
	}
	s.local = netip.AddrPortFrom(addr(4), port(0))
	if port(2) != 0 {
		s.remote = netip.AddrPortFrom(addr(20), port(2))
	}
	s.uid, s.inode = binary.NativeEndian.Uint32(b[diagUID:]), binary.NativeEndian.Uint32(b[diagUID+4:])
	return s, true
}
