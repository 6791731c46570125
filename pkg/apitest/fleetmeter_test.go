//go:build kubeapi

package apitest

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// meter passes connections on to the API server and counts them and their bytes, TLS included. They come from an address of its
// own, by which the audit log knows them.
type meter struct {
	address     string // where it listens
	source      net.IP
	to          string
	connections atomic.Int64
	up, down    atomic.Int64 // bytes to and from the API server

	mu   sync.Mutex
	open map[net.Conn]bool
}

// newMeter listens until the test ends; number makes its address, and must be below 65,536.
func newMeter(t *testing.T, number int, to string) *meter {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &meter{open: map[net.Conn]bool{}, address: l.Addr().String(), source: net.IPv4(127, 7, byte(number>>8), byte(number)), to: to}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { m.pass(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		m.cut()
		serving.Wait()
	})
	return m
}

func (m *meter) pass(client net.Conn) {
	defer client.Close()
	m.keep(client, true)
	defer m.keep(client, false)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: m.source}}
	server, err := dialer.Dial("tcp4", m.to)
	if err != nil {
		return
	}
	defer server.Close()
	m.connections.Add(1)
	var both sync.WaitGroup
	both.Go(func() { passOn(server, client, &m.up) })
	both.Go(func() { passOn(client, server, &m.down) })
	both.Wait()
}

func (m *meter) keep(c net.Conn, open bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if open {
		m.open[c] = true
	} else {
		delete(m.open, c)
	}
}

// cut ends the open connections and returns how many there were. The agents of a process share what keeps them open.
func (m *meter) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.open {
		c.Close()
	}
}

// passOn copies until either side ends, and ends both.
func passOn(to, from net.Conn, count *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		count.Add(int64(n))
		if _, werr := to.Write(buffer[:n]); errors.Join(err, werr) != nil {
			return
		}
	}
}
