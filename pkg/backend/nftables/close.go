package nftables

import "golang.org/x/sys/unix"

// close gives the socket back. Closing one that deleted something keeps its process until the kernel has freed all of it,
// which takes no processor but 8 to 15 ms, and seconds on a busy node; the kernel's collector of sockets waits in its place.
//
// The collector closes Unix sockets that refer to nothing but each other. One end of a pair is sent, with the socket, over
// the other end; once all three are closed here, the message that holds two of them is all that is left of them. The
// pair comes last: the close of a Unix socket starts the collector, and the one who closes the socket last is the
// one who waits. The collector is a worker of the kernel since Linux 6.9 and where that was taken into older ones. Before,
// it ran within that close, which then waits as long as without it. So it does if the socket can't be sent.
func (s *socket) close() {
	if !s.deletes {
		_ = unix.Close(s.fd)
		return
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		_ = unix.Sendmsg(pair[1], []byte{0}, unix.UnixRights(s.fd, pair[0]), nil, unix.MSG_NOSIGNAL)
		defer func() { _, _ = unix.Close(pair[0]), unix.Close(pair[1]) }()
	}
	_ = unix.Close(s.fd)
}
