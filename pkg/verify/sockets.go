package verify

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
)

// socket is a TCP socket that listens, or a UDP socket that is not connected.
type socket struct {
	protocol int // unix.IPPROTO_TCP or UDP
	at       netip.AddrPort
	onlyIPv6 bool
	uid      uint32 // of who opened it
	inode    uint64
}

// What golang.org/x/sys lacks of linux/inet_diag.h and linux/sock_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56 // struct inet_diag_req_v2
	diagMessageSize  = 72 // struct inet_diag_msg
	diagV6Only       = 11 // INET_DIAG_SKV6ONLY
	tcpListen        = 10
	tcpClose         = 7 // the state of an unconnected UDP socket
)

// sockets lists what listens in the network namespace of the calling thread, by sock_diag(7).
func sockets() ([]socket, error) {
	conn, err := netlink.Open(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var all []socket
	for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			request := make([]byte, diagRequestSize)
			request[0], request[1] = family, byte(protocol)
			binary.NativeEndian.PutUint32(request[4:], 1<<tcpListen|1<<tcpClose)
			err := conn.Ask(sockDiagByFamily, unix.NLM_F_DUMP, request, func(body []byte) {
				if s, ok := parseSocket(body); ok {
					s.protocol = protocol
					all = append(all, s)
				}
			})
			if err != nil {
				return nil, fmt.Errorf("list listening sockets: %w", err)
			}
		}
	}
	return all, nil
}

func parseSocket(body []byte) (socket, bool) {
	if len(body) < diagMessageSize {
		return socket{}, false
	}
	addr, ok := netip.AddrFromSlice(body[8 : 8+map[byte]int{unix.AF_INET: 4, unix.AF_INET6: 16}[body[0]]])
	only := netlink.Parse(body[diagMessageSize:])[diagV6Only]
	return socket{
		at:       netip.AddrPortFrom(addr, binary.BigEndian.Uint16(body[4:])),
		onlyIPv6: len(only) > 0 && only[0] != 0,
		uid:      binary.NativeEndian.Uint32(body[64:]),
		inode:    uint64(binary.NativeEndian.Uint32(body[68:])),
	}, ok
}
