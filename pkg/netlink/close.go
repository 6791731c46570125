package netlink

import "golang.org/x/sys/unix"

// Close closes the socket. After a deletion the kernel makes the closing process wait until it has freed everything: 8 to 15 ms,
// and seconds on a busy node. Here the kernel's garbage collector waits instead.
//
// The collector closes Unix sockets that only refer to each other. Close sends one end of a socket pair, together with
// the netlink socket, over the other end. Once it has closed all three, only that message refers to them. The pair is
// closed last: closing a Unix socket starts the collector, and the last to close the netlink socket is the one that waits.
// The collector has been a kernel worker since Linux 6.9, and in older kernels that took the change. Before that it ran
// within close, which then takes as long as an ordinary one. The same happens if the socket can't be sent.
func (c *Conn) Close() {
	if !c.deleted {
		_ = unix.Close(c.fd)
		return
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		_ = unix.Sendmsg(pair[1], []byte{0}, unix.UnixRights(c.fd, pair[0]), nil, unix.MSG_NOSIGNAL)
		defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
	}
	_ = unix.Close(c.fd)
}
