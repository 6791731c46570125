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

// send sends the packet from the calling thread's network namespace, for the packet's user. A TCP connection is begun, not awaited. The
// function that it returns ends the connection.
func send(p trace.Packet) (end func(), err error) {
	fd, err := begin(p)
	if err != nil {
		return nil, err
	}
	return func() { _ = unix.Close(fd) }, nil
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

// begin sends the first packet of a connection and returns its socket.
func begin(p trace.Packet) (fd int, err error) {
	kind, ok := socketTypes[p.Protocol]
	if !ok {
		return 0, fmt.Errorf("%s can't be sent: use --proto tcp, udp or sctp", trace.ProtocolName(p.Protocol))
	}
	family := unix.AF_INET
	if p.Dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	if fd, err = socketOf(p.UID, p.GID, family, kind, int(p.Protocol)); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	if p.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(p.Mark)); err != nil {
			return 0, os.NewSyscallError("set mark", err)
		}
	}
	if p.Src.Addr().IsValid() {
		if err := unix.Bind(fd, address(p.Src)); err != nil {
			return 0, fmt.Errorf("bind to %s: %w", p.Src, err)
		}
	}
	if err := unix.Connect(fd, address(p.Dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) && !dropped(err) {
		return 0, os.NewSyscallError("connect", err)
	}
	if kind == unix.SOCK_DGRAM {
		if _, err := unix.Write(fd, []byte{0}); err != nil && !dropped(err) {
			return 0, os.NewSyscallError("send", err)
		}
	}
	return fd, nil
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
