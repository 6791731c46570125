package livetrace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

// sender is a socket that will send a packet.
type sender struct {
	fd     int
	packet trace.Packet
}

// socketOf opens a socket that belongs to a user and a group: rules look at those with which the socket's file was opened.
func socketOf(uid, gid uint32, family, kind, protocol int) (fd int, err error) {
	runtime.LockOSThread() // these IDs are the thread's own
	defer runtime.UnlockOSThread()
	ownGID, err := unix.SetfsgidRetGid(int(gid))
	if err != nil {
		return 0, os.NewSyscallError("setfsgid", err)
	}
	defer func() { _ = unix.Setfsgid(ownGID) }()
	ownUID, err := unix.SetfsuidRetUid(int(uid))
	if err != nil {
		return 0, os.NewSyscallError("setfsuid", err)
	}
	defer func() { _ = unix.Setfsuid(ownUID) }()
	// The kernel does not say that it changed nothing.
	gotGID, _ := unix.SetfsgidRetGid(-1)
	gotUID, _ := unix.SetfsuidRetUid(-1)
	if gotGID != int(gid) || gotUID != int(uid) {
		return 0, fmt.Errorf("send for user %d and group %d: CAP_SETUID or CAP_SETGID is missing: run as root", uid, gid)
	}
	fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	return fd, os.NewSyscallError("socket", err)
}

var socketTypes = map[uint8]int{
	unix.IPPROTO_TCP: unix.SOCK_STREAM, unix.IPPROTO_UDP: unix.SOCK_DGRAM, unix.IPPROTO_SCTP: unix.SOCK_STREAM,
}

// open makes the socket for a packet in the calling thread's network namespace, for the packet's user. The socket has its source port
// already, by which its packets can be told from those of other connections.
func open(p trace.Packet) (s sender, err error) {
	kind, ok := socketTypes[p.Protocol]
	if !ok {
		return s, fmt.Errorf("%s can't be sent: use --proto tcp, udp or sctp", trace.ProtocolName(p.Protocol))
	}
	family, unspecified := unix.AF_INET, netip.IPv4Unspecified()
	if p.Dst.Addr().Is6() {
		family, unspecified = unix.AF_INET6, netip.IPv6Unspecified()
	}
	if s.fd, err = socketOf(p.UID, p.GID, family, kind, int(p.Protocol)); err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if p.Mark != 0 {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.Mark)); err != nil {
			return s, os.NewSyscallError("set mark", err)
		}
	}
	if !p.Src.Addr().IsValid() {
		p.Src = netip.AddrPortFrom(unspecified, p.Src.Port())
	}
	if err := unix.Bind(s.fd, address(p.Src)); err != nil {
		return s, fmt.Errorf("bind to %s: %w", p.Src, err)
	}
	bound, err := unix.Getsockname(s.fd)
	if err != nil {
		return s, os.NewSyscallError("getsockname", err)
	}
	p.Src = netip.AddrPortFrom(p.Src.Addr(), portOf(bound))
	s.packet = p
	return s, nil
}

// send begins a TCP connection, which is not awaited, or sends a datagram.
func (s sender) send() error {
	if err := unix.Connect(s.fd, address(s.packet.Dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) && !dropped(err) {
		return os.NewSyscallError("connect", err)
	}
	if s.packet.Protocol == unix.IPPROTO_UDP {
		if _, err := unix.Write(s.fd, []byte{0}); err != nil && !dropped(err) {
			return os.NewSyscallError("send", err)
		}
	}
	return nil
}

// close ends a connection by a reset, so that connection tracking soon forgets it.
func (s sender) close() {
	_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(s.fd)
}

func portOf(a unix.Sockaddr) uint16 {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return uint16(a.Port)
	case *unix.SockaddrInet6:
		return uint16(a.Port)
	}
	return 0
}

// dropped reports whether the error may come from a rule that drops or rejects the packet: then its trace tells.
func dropped(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EACCES)
}

func address(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
