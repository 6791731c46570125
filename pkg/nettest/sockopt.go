package nettest

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// control sets up a socket before it is bound; network is tcp4, tcp6, udp4 or udp6.
type control = func(network, address string, raw syscall.RawConn) error

// flag is a socket option that is on or off.
type flag struct{ level, name int }

var (
	setTransparent = setFlags(map[string][]flag{
		"tcp4": {{unix.SOL_IP, unix.IP_TRANSPARENT}},
		"tcp6": {{unix.SOL_IPV6, unix.IPV6_TRANSPARENT}},
	})
	// A datagram's destination is told by the first, and IPv6 answers from any only with the second.
	setAnyDestination = setFlags(map[string][]flag{
		"udp4": {{unix.SOL_IP, unix.IP_PKTINFO}},
		"udp6": {{unix.SOL_IPV6, unix.IPV6_RECVPKTINFO}, {unix.SOL_IPV6, unix.IPV6_FREEBIND}},
	})
	// A client hears of an unreachable host at once; without it, UDP waits for the port to be unreachable.
	setAllErrors = setFlags(map[string][]flag{
		"udp4": {{unix.SOL_IP, unix.IP_RECVERR}},
		"udp6": {{unix.SOL_IPV6, unix.IPV6_RECVERR}},
	})
)

func setFlags(of map[string][]flag) control {
	return func(network, _ string, raw syscall.RawConn) error {
		var errs []error
		err := raw.Control(func(fd uintptr) {
			for _, f := range of[network] {
				errs = append(errs, unix.SetsockoptInt(int(fd), f.level, f.name, 1))
			}
		})
		return errors.Join(append(errs, err)...)
	}
}
