package kube

import (
	"cmp"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// connectTime is how long a connection may take to come up. The next attempt leaves from another port, and a load balancer
	// may lead it to another API server.
	connectTime = 3 * time.Second
	// ackTime is how long the other end may leave sent data unacknowledged until the kernel ends the connection. Otherwise, requests
	// over a connection that a load balancer has forgotten would wait for their deadline, one after the other.
	ackTime = 4 * time.Second
)

// Dialer connects to API servers. It gives up a connection whose other end has vanished within seconds of the next request.
func Dialer() *net.Dialer {
	return &net.Dialer{Timeout: connectTime, KeepAlive: 30 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ackTime.Milliseconds()))
		})
		return cmp.Or(err, failed)
	}}
}
