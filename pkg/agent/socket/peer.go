package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// peerUID is the only UID that is served.
const peerUID = 0

// checkPeer fails unless the peer is root of this host.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("read the peer's credentials: %w", err)
	}
	var peer *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return fmt.Errorf("read the peer's credentials: %w", err)
	}
	if peer.Uid != peerUID {
		return fmt.Errorf("UID %d (PID %d) is not UID %d", peer.Uid, peer.Pid, peerUID)
	}
	return nil
}

// untilHangUp returns a context that ends when the peer hangs up, as a plugin does that has run out of time, and a function that
// stops watching. It reads nothing: the peer may have sent its next request.
func untilHangUp(ctx context.Context, conn *net.UnixConn) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx, cancel
	}
	conn.SetReadDeadline(time.Time{}) //nolint:errcheck // then only the request's own time bounds it
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if raw.Read(hasHungUp) == nil {
			cancel()
		}
	}()
	return ctx, func() {
		conn.SetReadDeadline(time.Now()) //nolint:errcheck // an error means that the connection is closed
		cancel()
		<-ended
	}
}

func hasHungUp(fd uintptr) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}
