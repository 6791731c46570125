package web

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// maxConnections is how many connections are open at once. A kubelet and a Prometheus have one each.
const maxConnections = 64

// maxTLSConnections is more: an API server has a connection for each request in flight, by default at most 600.
const maxTLSConnections = 600

// fairListener is a listener with a limit of open connections: each beyond it ends another. None waits, so a health check gets
// through however many connections others hold.
type fairListener struct {
	net.Listener
	limit int

	mu   sync.Mutex
	open []*fairConn // the oldest first
}

// Accept waits for the next connection.
func (l *fairListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &fairConn{Conn: conn, listener: l}
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.from = a.AddrPort().Addr().Unmap()
	}
	if surplus := l.add(c); surplus != nil {
		surplus.reset()
	}
	return c, nil
}

// add adds the connection and returns the one that has to go for it: the oldest of the address that has the most.
func (l *fairListener) add(c *fairConn) (surplus *fairConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, c)
	if len(l.open) <= l.limit {
		return nil
	}
	has := map[netip.Addr]int{}
	for _, o := range l.open {
		has[o.from]++
	}
	for _, o := range l.open {
		if surplus == nil || has[o.from] > has[surplus.from] {
			surplus = o
		}
	}
	return surplus
}

func (l *fairListener) remove(c *fairConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(o *fairConn) bool { return o == c })
}

type fairConn struct {
	net.Conn
	listener *fairListener
	from     netip.Addr
}

// Close makes room for another connection.
func (c *fairConn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}

// reset closes the connection at once: the kernel drops what the peer has not read.
func (c *fairConn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		tcp.SetLinger(0) //nolint:errcheck // it only takes longer then
	}
	c.Close() //nolint:errcheck // there is nothing more to do
}
