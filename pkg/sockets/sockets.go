// Package sockets lists the TCP and UDP sockets of a network namespace, and the processes that hold them.
package sockets

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// Socket is a TCP or UDP socket.
type Socket struct {
	Protocol byte           // unix.IPPROTO_TCP or UDP
	Local    netip.AddrPort // a socket of both families has IPv4 addresses unmapped
	Remote   netip.AddrPort // the zero AddrPort if the socket is not connected
	OnlyIPv6 bool           // an IPv6 socket that takes no IPv4
	UID      uint32         // of who opened it
	// Inode is 0 for a socket that no process holds any more, such as one in TIME_WAIT. Its UID means nothing then.
	Inode uint32
}

// States are a set of the states in which a socket may be, by the bits of the kernel's numbers (include/net/tcp_states.h).
type States uint32

// Waiting are the TCP sockets that listen and the UDP sockets that are not connected, whose state is TCP_CLOSE.
const (
	Waiting States = 1<<10 | 1<<7
	All     States = 0xfff
)

// What golang.org/x/sys lacks of linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	requestSize      = 56 // struct inet_diag_req_v2
	messageSize      = 72 // struct inet_diag_msg
	onlyIPv6         = 11 // INET_DIAG_SKV6ONLY
)

// The places in struct inet_diag_msg.
const (
	localPort  = 4
	remotePort = 6
	localAddr  = 8
	remoteAddr = 24
	uid        = 64
	inode      = 68
)

// List returns the sockets of the calling thread's network namespace that are in one of the states, by sock_diag(7). It needs no
// privilege.
func List(states States) ([]Socket, error) {
	conn, err := netlink.Open(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var all []Socket
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			request := make([]byte, requestSize)
			request[0], request[1] = family, protocol
			binary.NativeEndian.PutUint32(request[4:], uint32(states))
			err := conn.Ask(sockDiagByFamily, unix.NLM_F_DUMP, request, func(body []byte) {
				if s, ok := parse(body); ok {
					s.Protocol = protocol
					all = append(all, s)
				}
			})
			if err != nil {
				return nil, fmt.Errorf("list sockets: %w", err)
			}
		}
	}
	return all, nil
}

var addrSizes = map[byte]int{unix.AF_INET: 4, unix.AF_INET6: 16}

func parse(b []byte) (s Socket, ok bool) {
	if len(b) < messageSize || addrSizes[b[0]] == 0 {
		return s, false
	}
	end := func(addr, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(b[addr : addr+addrSizes[b[0]]])
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[port:]))
	}
	s.Local = end(localAddr, localPort)
	if remote := end(remoteAddr, remotePort); remote.Port() != 0 {
		s.Remote = remote
	}
	only := netlink.Parse(b[messageSize:])[onlyIPv6]
	s.OnlyIPv6 = len(only) > 0 && only[0] != 0
	s.UID, s.Inode = binary.NativeEndian.Uint32(b[uid:]), binary.NativeEndian.Uint32(b[inode:])
	return s, true
}
