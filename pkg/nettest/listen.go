package nettest

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// answerTime bounds how long a listener bothers with one connection.
const answerTime = 5 * time.Second

// Banner makes the one line that a listener answers to a connection, without the line's end.
type Banner func(conn *net.TCPConn) string

// Named is the banner of an application or a server: NAME PORT, with the port at which the connection arrived.
func Named(name string) Banner {
	return func(conn *net.TCPConn) string { return fmt.Sprintf("%s %d", name, localPort(conn)) }
}

// Proxy is the banner of a sidecar proxy: `proxy PORT original ADDR:PORT`, or `original unknown` where nothing tracked
// the connection.
func Proxy(conn *net.TCPConn) string {
	original := "unknown"
	if dst, err := OriginalDst(conn); err == nil {
		original = dst.String()
	}
	return fmt.Sprintf("proxy %d original %s", localPort(conn), original)
}

func localPort(conn *net.TCPConn) int { return conn.LocalAddr().(*net.TCPAddr).Port }

// Listener answers every connection to a port of a namespace with one line.
type Listener struct {
	sockets []net.Listener
	running sync.WaitGroup
}

// Listen listens on TCP port of all IPv4 and IPv6 addresses of the namespace and answers each connection with its
// banner. The sockets keep the namespace alive until Close.
func Listen(ns *Namespace, port uint16, banner Banner) (*Listener, error) {
	l := &Listener{}
	for _, address := range []struct{ network, host string }{{"tcp4", "0.0.0.0"}, {"tcp6", "[::]"}} {
		var socket net.Listener
		err := ns.Do(func() (err error) {
			socket, err = net.Listen(address.network, fmt.Sprintf("%s:%d", address.host, port))
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen in namespace %s: %w", ns.name, err), l.Close())
		}
		l.sockets = append(l.sockets, socket)
		l.running.Go(func() { l.serve(socket, banner) })
	}
	return l, nil
}

func (l *Listener) serve(socket net.Listener, banner Banner) {
	for {
		conn, err := socket.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { answer(conn.(*net.TCPConn), banner) })
	}
}

// answer leaves errors to the peer, which gets no line.
func answer(conn *net.TCPConn, banner Banner) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return
	}
	fmt.Fprintln(conn, banner(conn))
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
