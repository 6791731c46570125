package cniplugin_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// ways are the connections that a prober tries, in both directions and families.
var ways = map[string]struct {
	pod bool // it is the pod that connects
	to  netip.AddrPort
}{
	"IPv4 out": {true, netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), 80)},
	"IPv6 out": {true, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::7"), 80)},
	"IPv4 in":  {false, netip.AddrPortFrom(nettest.PodIPv4, 8080)},
	"IPv6 in":  {false, netip.AddrPortFrom(nettest.PodIPv6, 8080)},
}

// serve starts proxy, application and a server outside.
func (s *struck) serve() {
	s.t.Helper()
	listen := func(ns *nettest.Namespace, port uint16, b nettest.Banner) {
		l, err := nettest.Listen(ns, port, b)
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close() })
	}
	listen(s.world.Pod, 15001, nettest.Proxy)
	listen(s.world.Pod, 15003, nettest.Proxy)
	listen(s.world.Pod, 8080, nettest.Named("app"))
	listen(s.world.Outside, 80, nettest.Named("outside"))
}

// prober connects all the while, and notes what it sees: U for unmeshed, R for redirected, x for a connection that is lost. It
// notes once what stays so. A connection may be lost that is under way when the first rules come: the kernel tracks none before,
// and takes the next packet for the first.
type prober struct {
	running sync.WaitGroup
	stop    chan struct{}
	mu      sync.Mutex
	seen    map[string]string
}

func (s *struck) probe() *prober {
	p := &prober{stop: make(chan struct{}), seen: map[string]string{}}
	for name, way := range ways {
		from := s.world.Outside
		if way.pod {
			from = s.world.Pod
		}
		p.running.Go(func() {
			for last := false; ; {
				p.note(name, answerOf(from, way.to))
				if last {
					return
				}
				select {
				case <-p.stop:
					last = true // it sees the end
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	return p
}

// answerOf is who answers a connection, as a prober notes it.
func answerOf(from *nettest.Namespace, to netip.AddrPort) string {
	alive := net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2} // the peer's kernel answers
	dialer := net.Dialer{Timeout: nettest.Patience, KeepAliveConfig: alive}
	var conn net.Conn
	err := from.Do(func() (err error) { conn, err = dialer.Dial("tcp", to.String()); return err })
	if lost(err) {
		return "x"
	}
	if err != nil {
		return "[" + err.Error() + "]"
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(nettest.Patience))
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	switch got := string(answer[:n]); {
	case strings.HasPrefix(got, "proxy 1500"):
		return "R"
	case strings.HasPrefix(got, "app "), strings.HasPrefix(got, "outside "):
		return "U"
	case lost(err):
		return "x"
	default:
		return fmt.Sprintf("[%q, %v]", got, err)
	}
}

func lost(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ETIMEDOUT)
}

func (p *prober) note(way, saw string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !strings.HasSuffix(p.seen[way], saw) {
		p.seen[way] += saw
	}
}

// end stops probing and returns what any way has seen that is not as expected; "" if there is none.
func (p *prober) end(expected string) string {
	close(p.stop)
	p.running.Wait()
	var wrong []string
	for way, saw := range p.seen {
		if !regexp.MustCompile("^(" + expected + ")$").MatchString(saw) {
			wrong = append(wrong, way+" saw "+saw)
		}
	}
	return strings.Join(wrong, ", ")
}
