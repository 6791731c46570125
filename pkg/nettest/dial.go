package nettest

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// The errors of a connection or datagram that gets no answer. Their texts are the reasons of the packet language.
var (
	ErrRefused     = errors.New("refused")
	ErrTimeout     = errors.New("timeout")
	ErrUnreachable = errors.New("unreachable")
	ErrReset       = errors.New("reset")
	ErrSilent      = errors.New("silent") // accepted, and closed without an answer
)

var dialErrors = []error{ErrRefused, ErrTimeout, ErrUnreachable, ErrReset, ErrSilent}

// maxAnswer bounds the line that Dial and Ask read.
const maxAnswer = 256

// Call is a TCP connection to make, or a UDP datagram to send.
type Call struct {
	Protocol Protocol
	// Source is what the socket is bound to; the kernel chooses what is zero of it.
	Source      netip.AddrPort
	Destination netip.AddrPort
	// Timeout is for all of it, the answer too. Zero is Patience.
	Timeout time.Duration
}

// Dial connects from the namespace to addr by TCP with a socket that belongs to uid and to this process's group, and
// returns the line that is answered: it is the plain case of Process.Ask.
func Dial(ns *Namespace, uid uint32, addr netip.AddrPort, timeout time.Duration) (string, error) {
	p := own(ns)
	p.UID = uid
	return p.Ask(Call{Destination: addr, Timeout: timeout})
}

// Ask makes the call and returns the line that is answered. Only an answer from the very address that was asked counts,
// with UDP too. An error is one of the Err values of this package where the network is to blame, and says more where
// the caller is.
func (p Process) Ask(c Call) (string, error) {
	var line string
	err := p.converse(c, func(conn net.Conn) (err error) {
		if c.Protocol == UDP {
			if err := send(conn, []byte("?\n")); err != nil {
				return err
			}
		}
		line, err = bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadString('\n')
		return err
	})
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// converse opens the call's connection, runs talk on it, closes it and classifies the error.
func (p Process) converse(c Call, talk func(net.Conn) error) error {
	deadline := time.Now().Add(cmp.Or(c.Timeout, Patience))
	conn, err := p.connect(c, deadline)
	if err != nil {
		return classify(c.Destination, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("dial %s: %w", c.Destination, err)
	}
	return classify(c.Destination, talk(conn))
}

// connect opens the connection. The socket is created by the thread that has become the process: netfilter's owner
// match looks at the filesystem UID and GID that the thread had then. A UDP socket is connected too: it receives from
// its peer's address alone, and its peer's ICMP errors.
func (p Process) connect(c Call, deadline time.Time) (conn net.Conn, err error) {
	dialer := net.Dialer{Deadline: deadline, Control: setAllErrors}
	if c.Source.IsValid() || c.Source.Port() != 0 {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(c.Source)
		if c.Protocol == UDP {
			dialer.LocalAddr = net.UDPAddrFromAddrPort(c.Source)
		}
	}
	network := c.Protocol.String() + "4"
	if c.Destination.Addr().Is6() {
		network = c.Protocol.String() + "6"
	}
	for {
		err = p.do(func() error {
			// With one literal address the dialer starts no goroutine of its own.
			conn, err = dialer.Dial(network, c.Destination.String())
			return err
		})
		// A program that another test is about to start has, for a moment, a copy of each socket, also of those that are
		// closed here meanwhile.
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(time.Millisecond)
	}
}

// send writes a datagram. It ignores EPERM, which a rule causes that drops or rejects the datagram: reading tells which.
func send(conn net.Conn, datagram []byte) error {
	if _, err := conn.Write(datagram); !errors.Is(err, syscall.EPERM) {
		return err
	}
	return nil
}

// classify turns the kernel's error into one of dialErrors; nil stays nil.
func classify(addr netip.AddrPort, err error) error {
	var timeout interface{ Timeout() bool }
	switch {
	case err == nil:
		return nil
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
