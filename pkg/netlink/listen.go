package netlink

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Listener receives what the kernel tells a multicast group of a netlink protocol.
type Listener struct {
	file *os.File
	buf  []byte
}

// ErrLost says that the kernel had more messages than the receive buffer holds, and dropped some.
var ErrLost = errors.New("messages of the kernel were lost: they came faster than they were read")

// Listen joins a group, such as unix.NFNLGRP_NFTRACE, in the calling thread's network namespace. It asks for a receive buffer
// of so many bytes; without CAP_NET_ADMIN the kernel grants less.
func Listen(protocol, group, buffer int) (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("open netlink socket", err)
	}
	l := &Listener{os.NewFile(uintptr(fd), "netlink"), make([]byte, answerSize)}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) // it gets an address: the kernel's own, 0, is left out
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("join netlink group %d: %w", group, err), l.Close())
	}
	return l, nil
}

// Receive waits for messages and calls each with the type and the body of every one. It returns ErrLost as soon as some are
// lost, ahead of those that came before; os.ErrDeadlineExceeded after the deadline, and os.ErrClosed after Close.
func (l *Listener) Receive(each func(kind int, body []byte)) error {
	n, err := l.file.Read(l.buf)
	if errors.Is(err, unix.ENOBUFS) {
		return ErrLost
	}
	if err != nil {
		return fmt.Errorf("receive from the kernel: %w", err)
	}
	for _, m := range messages(l.buf[:n]) {
		each(int(m.kind), m.body)
	}
	return nil
}

// SetDeadline is until when Receive waits; the zero time is for ever. It also ends a Receive that waits now.
func (l *Listener) SetDeadline(t time.Time) error { return l.file.SetReadDeadline(t) }

// Close leaves the group. It ends a Receive that waits.
func (l *Listener) Close() error { return l.file.Close() }

// Join joins another group of the same protocol. What the kernel tells to several groups arrives in order.
func (l *Listener) Join(group int) error {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("join netlink group %d: %w", group, err)
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	})
	if err := errors.Join(err, refused); err != nil {
		return fmt.Errorf("join netlink group %d: %w", group, err)
	}
	return nil
}
