// Package originaldst asks the kernel where a redirected connection was going.
package originaldst

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// soOriginalDst is SO_ORIGINAL_DST of linux/netfilter_ipv4.h and IP6T_SO_ORIGINAL_DST of ip6_tables.h.
const soOriginalDst = 80

// Of asks the kernel for the address that the peer of an accepted connection dialed before a REDIRECT or DNAT
// changed it. On a connection that was not translated it returns the local address or, where nothing tracks
// connections, an error that is unix.ENOENT or unix.ENOPROTOOPT.
func Of(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	// A dual-stack socket has an IPv6 local address also where its peer speaks IPv4; conntrack knows the latter.
	lookUp := originalDst6
	if local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); local.Unmap().Is4() {
		lookUp = originalDst4
	}
	var dst netip.AddrPort
	var lookUpErr error
	if err := raw.Control(func(fd uintptr) { dst, lookUpErr = lookUp(int(fd)) }); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read original destination: %w", err)
	}
	if lookUpErr != nil {
		return dst, fmt.Errorf("read original destination: %w", lookUpErr)
	}
	return dst, nil
}

// originalDst4 reads a struct sockaddr_in through the only x/sys getter whose result is a plain array of at least its
// 16 bytes.
func originalDst4(fd int) (netip.AddrPort, error) {
	option, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	sockaddr := option.Multiaddr
	port := binary.BigEndian.Uint16(sockaddr[2:4])
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sockaddr[4:8])), port), nil
}

// originalDst6 reads a struct sockaddr_in6 through the x/sys getter whose result begins with one.
func originalDst6(fd int) (netip.AddrPort, error) {
	option, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, soOriginalDst)
	if err != nil {
		return netip.AddrPort{}, err
	}
	// x/sys leaves the port in network order.
	var port [2]byte
	binary.NativeEndian.PutUint16(port[:], option.Addr.Port)
	return netip.AddrPortFrom(netip.AddrFrom16(option.Addr.Addr), binary.BigEndian.Uint16(port[:])), nil
}
