package conns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/detour-cni/detour/pkg/conns/envoy"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
)

// hold has the client connect to an address at which the server listens, and returns when it has accepted. The connection stays open until
// end or the test's.
func (s *scene) hold(client nettest.Process, to string, listen func(port uint16, banner nettest.Banner) (*nettest.Listener, error)) (end func()) {
	s.t.Helper()
	accepted, release, ended := make(chan bool), make(chan bool), make(chan bool)
	at := netip.MustParseAddrPort(to)
	l, err := listen(at.Port(), func(*net.TCPConn) string {
		accepted <- true
		<-release
		return "released"
	})
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(ended)
		_, _ = client.Ask(nettest.Call{Destination: at})
	}()
	end = sync.OnceFunc(func() {
		close(release)
		<-ended
		l.Close()
	})
	s.t.Cleanup(end)
	<-accepted
	return end
}

func (s *scene) outside() nettest.Process { return nettest.Process{Namespace: s.world.Outside} }

func pass(to netip.AddrPort) netip.AddrPort { return to }

func (s *scene) check(r Report, to string, way Way, sentence, why string) {
	s.t.Helper()
	d := r.to(s.t, to)
	if d.Way != way || d.Sentence != sentence || !strings.Contains(d.Why, why) {
		s.t.Errorf("%s: %s: %q, %q\n%+v", to, d.Way, d.Sentence, d.Why, d)
	}
}

func TestAnExcludedPortGoesDirect(t *testing.T) {
	forBoth(t, "istio/outbound-exclude-ports", func(s *scene) {
		s.relay(pass)
		s.hold(s.app, "10.0.0.6:6379", s.outside().Listen)
		r := s.judge()
		s.check(r, "10.0.0.6:6379", Direct, "1 connection went direct", "")
		c := r.to(s.t, "10.0.0.6:6379").Connections[0]
		if c.Owner == nil || c.Owner.UID != nettest.AppUID || c.Owner.Proxy || c.State != "ESTABLISHED" {
			s.t.Errorf("%+v, %+v", c, c.Owner)
		}
	})
}

// Once the socket is gone nobody knows whose it was.
func TestAClosedConnectionThatWasNotRedirectedIsUnknown(t *testing.T) {
	forBoth(t, "istio/outbound-exclude-ports", func(s *scene) {
		s.relay(pass)
		s.serve(6379)
		s.ask(s.app, "10.0.0.6:6379", "server 6379")
		s.check(s.judge(), "10.0.0.6:6379", Unknown, "1 connection of unknown origin", "socket is gone")
	})
}

func TestTheProxysOwnConnectionIsItsOwn(t *testing.T) {
	forBoth(t, "osm/defaults", func(s *scene) {
		s.relay(pass)
		s.hold(s.proxy, "10.96.0.1:15128", s.outside().Listen)
		s.check(s.judge(), "10.96.0.1:15128", ByProxy, "1 connection made by the proxy itself", "")
	})
}

func TestTheProxyConnectsElsewhere(t *testing.T) {
	forBoth(t, "istio/defaults", func(s *scene) {
		elsewhere := netip.MustParseAddrPort("10.64.7.7:8080")
		s.serve(7000, 8080)
		s.relay(func(netip.AddrPort) netip.AddrPort { return elsewhere })
		s.ask(s.app, "10.233.0.115:7000", "server 8080")
		r := s.judge()
		s.check(r, "10.233.0.115:7000", Unknown, "1 connection reached the proxy, none is known that left it", "by its connections to 10.64.7.7:8080")
		if r.Has(Swallowed) || !r.Has(Unknown) {
			s.t.Errorf("%+v", r)
		}
		snapshot := s.read()
		p, err := snapshot.FindProxy("istio", redirect.Proxy{})
		if err != nil {
			s.t.Fatal(err)
		}
		config, err := envoy.Ask(s.t.Context(), s.admin("istio-allow-any"), p.Admin)
		if err != nil {
			s.t.Fatal(err)
		}
		// The proxy's socket is gone, so only Envoy's endpoints tell that the connection to there is the proxy's.
		s.check(snapshot.Judge(p, config, nil), "10.233.0.115:7000", Onward, "1 connection reached the proxy, 1 left it", "to 10.64.7.7:8080")
	})
}

func TestInbound(t *testing.T) {
	for _, mesh := range []string{"istio/defaults", "osm/defaults"} {
		t.Run(mesh, func(t *testing.T) {
			forBoth(t, mesh, func(s *scene) {
				s.relay(pass)
				s.listen(s.app, 8080, nettest.Named("app"))
				s.ask(s.outside(), "10.77.0.2:8080", "app 8080")
				s.ask(s.outside(), "[fd77::2]:8080", "app 8080")
				r := s.judge()
				s.check(r, "10.77.0.2:8080", Onward, "1 connection reached the proxy, 1 left it", "")
				s.check(r, "[fd77::2]:8080", Onward, "1 connection reached the proxy, 1 left it", "")
			})
		})
	}
}

func TestNothingListensAtTheProxysPort(t *testing.T) {
	forBoth(t, "osm/defaults", func(s *scene) {
		s.serve(7000)
		l, err := s.proxy.Listen(15001, nettest.Named("proxy"))
		if err != nil {
			s.t.Fatal(err)
		}
		s.ask(s.app, "10.0.0.6:7000", "proxy 15001")
		if err := l.Close(); err != nil {
			s.t.Fatal(err)
		}
		r := s.judge()
		s.check(r, "10.0.0.6:7000", Swallowed, "1 connection reached the proxy, none left it", "nothing listens at the proxy's port 15001")
		if advice := r.to(s.t, "10.0.0.6:7000").Advice; !strings.Contains(advice, "it does not listen at port 15001") {
			s.t.Error(advice)
		}
	})
}

func TestIPv6(t *testing.T) {
	forBoth(t, "osm/defaults", func(s *scene) {
		s.serve(7000, 7003)
		s.relay(swallow)
		s.ask(s.app, "[2001:db8::6]:7000", "HTTP/1.1 400 Bad Request\r")
		s.ask(s.app, "[2001:db8::6]:7003", "server 7003")
		r := s.judge()
		s.check(r, "[2001:db8::6]:7000", Swallowed, "1 connection reached the proxy, none left it", "")
		s.check(r, "[2001:db8::6]:7003", Onward, "1 connection reached the proxy, 1 left it", "")
	})
}

// The kernel forgets a refused connection at once.
func TestTheDestinationRefuses(t *testing.T) {
	forBoth(t, "osm/defaults", func(s *scene) {
		s.relay(pass)
		s.ask(s.app, "10.0.0.6:7000", "refused")
		s.check(s.judge(), "10.0.0.6:7000", Swallowed, "1 connection reached the proxy, none left it", "unless 10.0.0.6:7000 refused them")
	})
}

// A connection that was reset is forgotten soon: what is not there some time later may have been.
func TestWhatMayBeForgottenIsNotSwallowed(t *testing.T) {
	forBoth(t, "istio/defaults", func(s *scene) {
		s.serve(7000)
		s.relay(swallow)
		s.ask(s.app, "10.0.0.6:7000", "HTTP/1.1 400 Bad Request\r")
		snapshot := s.read()
		for i := range snapshot.flows {
			snapshot.flows[i].Expires -= 47
		}
		p, err := snapshot.FindProxy("istio", redirect.Proxy{})
		if err != nil {
			s.t.Fatal(err)
		}
		r := snapshot.Judge(p, nil, nil)
		s.check(r, "10.0.0.6:7000", Unknown, "1 connection reached the proxy, none is known that left it", "is forgotten after 10 s")
	})
}

// TPROXY translates nothing: only the sockets tell that the proxy has the connection.
func TestTProxy(t *testing.T) {
	forBoth(t, "istio/tproxy", func(s *scene) {
		s.listen(s.proxy, 15001, nettest.Named("proxy"))
		s.hold(s.outside(), "10.77.0.2:8080", func(_ uint16, banner nettest.Banner) (*nettest.Listener, error) {
			return s.proxy.ListenTransparent(15006, banner)
		})
		s.listen(s.app, 9090, nettest.Named("app"))
		r := s.judge()
		s.check(r, "10.77.0.2:8080", Swallowed, "1 connection reached the proxy, none left it", "")
		c := r.to(s.t, "10.77.0.2:8080").Connections[0]
		if !c.TProxy || c.Listener != 15006 || c.Owner == nil || !c.Owner.Proxy || c.Mark != 0 {
			s.t.Errorf("%+v", c)
		}
	})
}

// What comes in to an excluded port is the application's from the start.
func TestAnExcludedInboundPortGoesDirect(t *testing.T) {
	forBoth(t, "istio/inbound-exclude-ports", func(s *scene) {
		s.relay(pass)
		s.hold(s.outside(), "10.77.0.2:5432", s.app.Listen)
		s.check(s.judge(), "10.77.0.2:5432", Direct, "1 connection went direct", "")
	})
}

// Queries are tracked in zones: the application's and the proxy's may have the same ports.
func TestCapturedDNS(t *testing.T) {
	forBoth(t, "istio/dns-capture", func(s *scene) {
		listen := func(p nettest.Process, port uint16, text string) {
			l, err := p.ListenDNS(port, text)
			if err != nil {
				s.t.Fatal(err)
			}
			s.t.Cleanup(func() { l.Close() })
		}
		listen(s.proxy, 15053, "the proxy")
		listen(s.outside(), 53, "the server")
		call := nettest.Call{Protocol: nettest.UDP, Source: netip.MustParseAddrPort("10.77.0.2:40000"), Destination: netip.MustParseAddrPort("10.96.0.10:53")}
		ask := func(p nettest.Process, want string) {
			if got, err := p.QueryDNS(call, "web."); err != nil || got != want {
				s.t.Fatalf("answered by %q, %v", got, err)
			}
		}
		ask(s.app, "the proxy")
		s.check(s.judge(), "10.96.0.10:53", Answered, "1 UDP flow reached the proxy, which answered", "")
		ask(s.proxy, "the server")
		r := s.judge()
		s.check(r, "10.96.0.10:53", Onward, "1 UDP flow reached the proxy, 1 left it", "")
		d := r.to(s.t, "10.96.0.10:53")
		if d.Connections[0].Zone != 2 || d.Onward[0].Zone != 1 || d.Connections[0].Original != d.Onward[0].Original {
			s.t.Errorf("%+v", d)
		}
	})
}

// admin serves Envoy's admin port in the pod, as the proxy, and returns how to dial it.
func (s *scene) admin(recorded string) envoy.Dial {
	s.t.Helper()
	startAdmin(s.t, s.world.Pod, recorded)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return Dialer(s.ns)(ctx, network, address)
	}
}
