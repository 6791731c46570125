package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// control sets up a socket before it is bound.
type control = func(network, address string, raw syscall.RawConn) error

// everywhere is a port of all addresses.
func everywhere(port uint16) []netip.AddrPort {
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), port), netip.AddrPortFrom(netip.IPv6Unspecified(), port)}
}

// answers is the banner of the program at the end of a connection.
func answers(name string) nettest.Banner {
	return func(conn *net.TCPConn) string {
		return answered(name, conn.LocalAddr().(*net.TCPAddr).AddrPort(), peer(conn))
	}
}

func peer(conn *net.TCPConn) netip.Addr { return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr() }

// listen answers each connection with one line. It stops with the process.
func listen(at []netip.AddrPort, set control, banner nettest.Banner) error {
	for _, addr := range at {
		config := net.ListenConfig{Control: set}
		config.SetMultipathTCP(false) // the rules are about TCP
		socket, err := config.Listen(context.Background(), "tcp"+family(addr.Addr()), addr.String())
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := socket.Accept()
				if err != nil {
					return
				}
				go answerOne(conn.(*net.TCPConn), banner)
			}
		}()
	}
	return nil
}

func answerOne(conn *net.TCPConn, banner nettest.Banner) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * relayTime))
	fmt.Fprintln(conn, banner(conn))
}

// listenUDP answers each datagram with one line until it is closed.
func listenUDP(at netip.AddrPort, name string) (io.Closer, error) {
	socket, err := net.ListenUDP("udp"+family(at.Addr()), net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	go func() {
		var ignored [512]byte
		for {
			_, from, err := socket.ReadFromUDPAddrPort(ignored[:])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = socket.WriteToUDPAddrPort([]byte(answered(name, at, from.Addr())+"\n"), from)
			}
		}
	}()
	return socket, nil
}

// family ends the name of a network.
func family(a netip.Addr) string {
	if a.Is4() {
		return "4"
	}
	return "6"
}

// ask dials as the user that this process runs as and reads a line.
func ask(addr netip.AddrPort, dialer net.Dialer) (string, error) {
	dialer.Timeout = relayTime
	conn, err := dialer.Dial("tcp", addr.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(relayTime))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

func askOriginal(_ *net.TCPConn, original netip.AddrPort) (string, error) {
	return ask(original, net.Dialer{})
}

// askInPod finds the application over the loopback, where it sees the proxy.
func askInPod(_ *net.TCPConn, original netip.AddrPort) (string, error) {
	return ask(inPod(original), net.Dialer{})
}

// clientMark is how the rules of mode TPROXY know connections that the proxy makes as its client.
const clientMark = 1337

// askAsClient asks the application where the client did, with the client's address: what Envoy's original_src does.
func askAsClient(conn *net.TCPConn, original netip.AddrPort) (string, error) {
	return ask(original, net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(peer(conn), 0)),
		Control:   setClient,
	})
}

func setTransparent(network, _ string, raw syscall.RawConn) error {
	if strings.HasSuffix(network, "6") {
		return setOption(raw, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return setOption(raw, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

func setClient(network, address string, raw syscall.RawConn) error {
	return errors.Join(setTransparent(network, address, raw), setOption(raw, unix.SOL_SOCKET, unix.SO_MARK, clientMark))
}

func setOption(raw syscall.RawConn, level, name, value int) error {
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, value) })
	return errors.Join(err, failed)
}
