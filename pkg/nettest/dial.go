package nettest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What becomes of a connection that gets no answer. Their texts are the reasons of the packet language.
var (
	ErrRefused     = errors.New("refused")
	ErrTimeout     = errors.New("timeout")
	ErrUnreachable = errors.New("unreachable")
	ErrReset       = errors.New("reset")
	ErrSilent      = errors.New("silent") // accepted, and closed without an answer
)

var dialErrors = []error{ErrRefused, ErrTimeout, ErrUnreachable, ErrReset, ErrSilent}

// maxAnswer bounds the line that Dial reads.
const maxAnswer = 256

// Dial connects from the namespace to addr with a socket that belongs to uid, and returns the line that is answered.
// timeout is for all of it. An error is one of the Err values of this package where the network is to blame, and says
// more where the caller is. Dial may be called concurrently.
func Dial(ns *Namespace, uid uint32, addr netip.AddrPort, timeout time.Duration) (string, error) {
	deadline := time.Now().Add(timeout)
	conn, err := connect(ns, uid, addr, deadline)
	if err != nil {
		return "", classify(addr, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", fmt.Errorf("dial %s: %w", addr, err)
	}
	line, err := bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadString('\n')
	if err != nil {
		return "", classify(addr, err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// connect opens the connection. The socket is created by the thread that has become uid: netfilter's owner match looks
// at the filesystem UID that the thread had then.
func connect(ns *Namespace, uid uint32, addr netip.AddrPort, deadline time.Time) (conn net.Conn, err error) {
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	err = ns.Do(func() error {
		if err := becomeUser(uid); err != nil {
			return err
		}
		// With one literal address the dialer starts no goroutine of its own.
		dialer := net.Dialer{Deadline: deadline}
		conn, err = dialer.Dial(network, addr.String())
		return err
	})
	return conn, err
}

// becomeUser sets the filesystem UID of the calling thread alone; the thread keeps its real UID.
func becomeUser(uid uint32) error {
	if _, err := unix.SetfsuidRetUid(int(uid)); err != nil {
		return fmt.Errorf("become UID %d: %w", uid, err)
	}
	// setfsuid reports no failure: ask with a UID that doesn't exist, which changes nothing.
	if now, err := unix.SetfsuidRetUid(-1); err != nil || uint32(now) != uid {
		return fmt.Errorf("become UID %d: still UID %d: %w", uid, now, os.ErrPermission)
	}
	return nil
}

// classify turns what the kernel said into one of dialErrors.
func classify(addr netip.AddrPort, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ErrRefused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return ErrUnreachable
	case errors.Is(err, syscall.ECONNRESET):
		return ErrReset
	case errors.Is(err, io.EOF):
		return ErrSilent
	case errors.As(err, &timeout) && timeout.Timeout():
		return ErrTimeout
	}
	return fmt.Errorf("dial %s: %w", addr, err)
}
