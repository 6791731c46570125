package nettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/originaldst"
)

// Banner makes the one line that a listener answers to a connection, without the line's end.
type Banner func(conn *net.TCPConn) string

// Named is the banner of an application or a server: NAME PORT, with the port at which the connection arrived.
func Named(name string) Banner {
	return func(conn *net.TCPConn) string { return named(name, localPort(conn)) }
}

func named(name string, port uint16) string { return fmt.Sprintf("%s %d", name, port) }

// Proxy is the banner of a sidecar proxy to which connections are redirected: ProxyAt the port at which they arrive.
func Proxy(conn *net.TCPConn) string { return ProxyAt(localPort(conn))(conn) }

// ProxyAt is the banner of a sidecar proxy that listens on port: `proxy PORT original ADDR:PORT`. For a connection that
// was redirected the kernel remembers the address dialed; one that TPROXY handed over has it as its local address.
// Otherwise it is `original unknown`.
func ProxyAt(port uint16) Banner {
	return func(conn *net.TCPConn) string {
		original := "unknown"
		if localPort(conn) != port {
			original = conn.LocalAddr().String()
		} else if dst, err := originaldst.Of(conn); err == nil {
			original = dst.String()
		}
		return fmt.Sprintf("%s original %s", named("proxy", port), original)
	}
}

func localPort(conn *net.TCPConn) uint16 { return conn.LocalAddr().(*net.TCPAddr).AddrPort().Port() }

// Listener answers all that arrives at a port of a namespace.
type Listener struct {
	sockets []io.Closer
	running sync.WaitGroup
}

// Listen is Process.Listen for this process's user and group.
func Listen(ns *Namespace, port uint16, banner Banner) (*Listener, error) {
	return own(ns).Listen(port, banner)
}

// Listen listens on TCP port of all IPv4 and IPv6 addresses of the namespace and answers each connection with its
// banner. The sockets keep the namespace alive until Close.
func (p Process) Listen(port uint16, banner Banner) (*Listener, error) {
	return p.listen(port, tcp(nil, line(banner)))
}

// ListenTransparent is Listen for connections to addresses and ports that aren't the namespace's too, which a TPROXY rule
// hands over. Other connections arrive as with Listen.
func (p Process) ListenTransparent(port uint16, banner Banner) (*Listener, error) {
	return p.listen(port, tcp(setTransparent, line(banner)))
}

// ListenUDP listens on UDP port of all IPv4 and IPv6 addresses of the namespace and answers each datagram, from the
// address to which it was sent, with NAME PORT.
func (p Process) ListenUDP(port uint16, name string) (*Listener, error) {
	answer := []byte(named(name, port) + "\n")
	return p.listen(port, udp(func([]byte) []byte { return answer }))
}

// service opens one socket of a listener, for one protocol in a family that is 4 or 6, and returns what serves it until
// it is closed.
type service func(l *Listener, family, address string) (serve func(), err error)

func (p Process) listen(port uint16, services ...service) (*Listener, error) {
	l := &Listener{}
	for _, at := range []struct{ family, host string }{{"4", "0.0.0.0"}, {"6", "[::]"}} {
		for _, open := range services {
			if err := l.open(p, open, at.family, fmt.Sprintf("%s:%d", at.host, port)); err != nil {
				return nil, errors.Join(fmt.Errorf("listen in namespace %s: %w", p.Namespace.name, err), l.Close())
			}
		}
	}
	return l, nil
}

func (l *Listener) open(p Process, open service, family, address string) error {
	var serve func()
	err := p.do(func() (err error) {
		serve, err = open(l, family, address)
		return err
	})
	if err != nil {
		return err
	}
	// An accepted socket belongs to the thread that accepts it.
	became := make(chan error)
	l.running.Go(func() {
		_ = onOwnThread(func() error {
			err := p.become()
			became <- err
			if err == nil {
				serve()
			}
			return nil
		})
	})
	return <-became
}

// tcp answers each connection by answer. set, which may be nil, sets up the socket before it is bound.
func tcp(set control, answer func(*net.TCPConn)) service {
	return func(l *Listener, family, address string) (func(), error) {
		config := net.ListenConfig{Control: set}
		config.SetMultipathTCP(false) // which Go would use, and which rules for TCP aren't about
		socket, err := config.Listen(context.Background(), "tcp"+family, address)
		if err != nil {
			return nil, err
		}
		l.sockets = append(l.sockets, socket)
		return func() { l.acceptAll(socket, answer) }, nil
	}
}

func (l *Listener) acceptAll(socket net.Listener, answer func(*net.TCPConn)) {
	for {
		conn, err := socket.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() {
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(Patience)); err == nil {
				answer(conn.(*net.TCPConn))
			}
		})
	}
}

// line leaves errors to the peer, which gets no line.
func line(banner Banner) func(*net.TCPConn) {
	return func(conn *net.TCPConn) { fmt.Fprintln(conn, banner(conn)) }
}

// Close stops listening and waits until the last connection is answered. A second Close does nothing.
func (l *Listener) Close() error {
	var errs []error
	for _, socket := range l.sockets {
		errs = append(errs, socket.Close())
	}
	l.sockets = nil
	l.running.Wait()
	return wrap("stop listening", errors.Join(errs...))
}
