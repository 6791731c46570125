package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// peers are clients of a listener that has at most three connections; those that are accepted stay open.
type peers struct {
	t *testing.T
	l *fairListener
}

func newPeers(t *testing.T) *peers {
	t.Helper()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &peers{t, &fairListener{Listener: l, limit: 3}}
}

// dial connects from the address and returns both ends.
func (p *peers) dial(from string) (client, server net.Conn) {
	p.t.Helper()
	client, err := dialFrom(from, p.l.Addr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	server, err = p.l.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func dialFrom(from, to string) (net.Conn, error) {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", to)
}

// isOpen reports whether the other side has left the connection open.
func isOpen(client net.Conn) bool {
	client.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := client.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestTheOldestConnectionOfTheAddressWithTheMostGoes(t *testing.T) {
	t.Parallel()
	p := newPeers(t)
	quiet, _ := p.dial("127.0.0.2")
	first, _ := p.dial("127.0.0.1")
	second, _ := p.dial("127.0.0.1")
	for _, c := range []net.Conn{quiet, first, second} {
		if !isOpen(c) {
			t.Fatal("a connection is closed although there is room")
		}
	}
	third, _ := p.dial("127.0.0.1")
	if isOpen(first) || !isOpen(second) || !isOpen(third) || !isOpen(quiet) {
		t.Error("not the first went, of the address that has three")
	}
	last, _ := p.dial("127.0.0.3")
	if isOpen(second) || !isOpen(third) || !isOpen(last) || !isOpen(quiet) {
		t.Error("not the second went, of the address that has two")
	}
	another, _ := p.dial("127.0.0.4")
	if isOpen(quiet) || !isOpen(third) || !isOpen(last) || !isOpen(another) {
		t.Error("not the oldest went, of addresses with one each")
	}
}

func TestAClosedConnectionMakesRoom(t *testing.T) {
	t.Parallel()
	p := newPeers(t)
	first, _ := p.dial("127.0.0.1")
	for range 20 {
		_, server := p.dial("127.0.0.1")
		server.Close()
		server.Close()
	}
	if !isOpen(first) || len(p.l.open) != 1 {
		t.Errorf("%d connections are counted, one is open", len(p.l.open))
	}
}

// A flood of new connections, as fast as they go.
func TestAHealthCheckGetsThroughAFlood(t *testing.T) {
	t.Parallel()
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() {
		Serve(ctx, l, Handler(prometheus.NewRegistry(), func(context.Context) ([]string, string) { return nil, "" }), slog.Default())
	})
	for range 4 {
		running.Go(func() { flood(ctx, l.Addr().String()) })
	}
	kubelet := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return dialFrom("127.0.0.2", l.Addr().String())
		},
	}}
	for range 20 {
		resp, err := kubelet.Get("http://" + l.Addr().String() + "/healthz")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", resp, err)
		}
		resp.Body.Close()
	}
}

// flood opens connections, asks for the metrics and keeps the last few hundred.
func flood(ctx context.Context, to string) {
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for ctx.Err() == nil {
		conn, err := dialFrom("127.0.0.1", to)
		if err != nil {
			continue
		}
		fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n")
		if open = append(open, conn); len(open) > 200 {
			open[0].Close()
			open = open[1:]
		}
	}
}

func TestWhatIsRememberedIsLookedAtAgainAfterAWhile(t *testing.T) {
	t.Parallel()
	looks := 0
	look := func() (int, error) { looks++; return looks, nil }
	for long, want := range map[time.Duration]int{time.Hour: 1, 0: 3} {
		looks = 0
		get := remember(look, long)
		for range 2 {
			get()
		}
		if got, err := get(); got != want || err != nil {
			t.Errorf("kept for %s: %d, %v, want %d", long, got, err, want)
		}
	}
}
