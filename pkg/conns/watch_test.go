package conns

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/conns/envoy"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
)

// watching follows the connections while the test does something. next returns the next event about an address.
func (s *scene) watch(e *envoy.Config) (next func(to, event string) Event) {
	s.t.Helper()
	p, err := s.read().FindProxy("", redirect.Proxy{})
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := NewWatcher(s.ns)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(s.t.Context())
	events, ended := make(chan Event, 1000), make(chan error, 1)
	go func() { ended <- w.Follow(ctx, p, e, nil, func(e Event) { events <- e }) }()
	s.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			s.t.Errorf("follow: %v", err)
		}
		w.Close()
	})
	return func(to, event string) Event {
		s.t.Helper()
		for late := time.After(nettest.Patience); ; {
			select {
			case e := <-events:
				if e.To().String() == to && e.Event == event {
					return e
				}
			case <-late:
				s.t.Fatalf("no %s of a connection to %s", event, to)
			}
		}
	}
}

func TestWatch(t *testing.T) {
	forBoth(t, "istio/defaults", func(s *scene) {
		s.serve(7000, 7003, 8080)
		s.relay(func(to netip.AddrPort) netip.AddrPort {
			if to.Port() == 7020 {
				return netip.MustParseAddrPort("10.64.7.7:8080")
			}
			return swallow(to)
		})
		s.ask(s.app, "10.0.0.6:7003", "server 7003") // before the watch
		next := s.watch(nil)

		s.ask(s.app, "10.0.0.6:7000", "HTTP/1.1 400 Bad Request\r")
		if e := next("10.0.0.6:7000", Begin); e.Way != Reached || e.Listener != 15001 {
			s.t.Errorf("%+v", e)
		}
		e := next("10.0.0.6:7000", End)
		if e.Way != Swallowed || e.Why != "" || !strings.Contains(e.Advice, "excludeOutboundPorts") {
			s.t.Errorf("swallowed: %+v", e)
		}

		s.ask(s.app, "10.0.0.6:7003", "server 7003")
		if e := next("10.0.0.6:7003", Begin); e.Way != Reached {
			s.t.Errorf("%+v", e)
		}
		if e := next("10.0.0.6:7003", Begin); e.Way != ByProxy {
			s.t.Errorf("%+v", e)
		}
		for e = next("10.0.0.6:7003", End); e.Way == ByProxy; {
			e = next("10.0.0.6:7003", End)
		}
		if e.Way != Onward || e.Why != "" {
			s.t.Errorf("onward: %+v", e)
		}

		s.ask(s.app, "10.0.0.6:7004", "refused") // the snapshot can't tell this from a swallowed one
		for e = next("10.0.0.6:7004", End); e.Way == ByProxy; {
			e = next("10.0.0.6:7004", End)
		}
		if e.Way != Onward || e.Why != "which was refused or reset" {
			s.t.Errorf("refused: %+v", e)
		}

		s.ask(s.app, "10.233.0.117:7020", "server 8080")
		if e := next("10.233.0.117:7020", End); e.Way != Unknown || !strings.Contains(e.Why, "10.64.7.7:8080") {
			s.t.Errorf("elsewhere: %+v", e)
		}
	})
}

func TestWatchOfAProxyThatIsNotThere(t *testing.T) {
	forBoth(t, "osm/defaults", func(s *scene) {
		next := s.watch(nil)
		s.ask(s.app, "10.0.0.6:7000", "refused")
		e := next("10.0.0.6:7000", End)
		if e.Way != Swallowed || e.Why != "the proxy's port 15001 refused it" || !strings.Contains(e.Advice, "it does not listen at port 15001") {
			s.t.Errorf("%+v", e)
		}
	})
}

// A connection that the proxy has had before may carry a new one only if it speaks HTTP.
func TestWatchOfASharedConnection(t *testing.T) {
	t.Parallel()
	s := pod(Flow{Original: tuple("10.77.0.2:39999", "10.0.0.6:7000")})
	s.open("10.77.0.2:39999", "10.0.0.6:7000", 1337, 1)
	p, err := s.FindProxy("istio", redirect.Proxy{})
	if err != nil {
		t.Fatal(err)
	}
	track := newTracker(s, p, nil, nil)
	track.look = func() ends { return s.sockets }
	f := redirected("10.77.0.2:40000", "10.0.0.6:7000")
	f.Protocol, f.State, f.Status = "tcp", "ESTABLISHED", []string{seenReply}
	var got []Event
	track.happen(f, false, func(Event) {})
	track.happen(f, true, func(e Event) { got = append(got, e) })
	if len(got) != 1 || got[0].Way != Onward || !strings.Contains(got[0].Why, "had before") {
		t.Errorf("%+v", got)
	}
}

// What began before the watch may have been passed on before it, too. The kernel may not even tell when it ends.
func TestWatchOfWhatBeganBefore(t *testing.T) {
	t.Parallel()
	old := Flow{Protocol: "tcp", Original: tuple("10.77.0.2:40000", "10.0.0.6:7000"), Reply: tuple("127.0.0.1:15001", "10.77.0.2:40000"), State: "ESTABLISHED"}
	track := newTracker(Snapshot{flows: []Flow{old}}, Proxy{Outbound: []uint16{15001}}, nil, nil)
	track.look = func() ends { return nil }
	var got []Event
	track.happen(old, true, func(e Event) { got = append(got, e) })
	if len(got) != 1 || got[0].Way != Unknown || got[0].Why != "it began before the watch" {
		t.Errorf("%+v", got)
	}
}

// A connection to the pod begins when it is established, and ends once.
func TestWatchTellsEachEventOnce(t *testing.T) {
	t.Parallel()
	s := pod()
	p, err := s.FindProxy("istio", redirect.Proxy{})
	if err != nil {
		t.Fatal(err)
	}
	track := newTracker(s, p, nil, nil)
	track.look = func() ends { return s.sockets }
	f := Flow{Protocol: "tcp", Original: tuple("192.0.2.1:5000", "10.77.0.2:8080"), Reply: tuple("10.77.0.2:8080", "192.0.2.1:5000")}
	var got []string
	for _, f.State = range []string{"SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "TIME_WAIT", ""} {
		track.happen(f, f.State == "", func(e Event) { got = append(got, e.Event+" "+e.State) })
	}
	if want := "begin ESTABLISHED, end TIME_WAIT"; strings.Join(got, ", ") != want {
		t.Errorf("got %q", got)
	}
	if len(track.live) != 0 {
		t.Error("it is kept")
	}
}

// Whether a connection was passed on can't be told if the kernel has dropped events.
func TestWatchAfterLostEvents(t *testing.T) {
	t.Parallel()
	f := Flow{Protocol: "tcp", Original: tuple("10.77.0.2:40000", "10.0.0.6:7000"), Reply: tuple("127.0.0.1:15001", "10.77.0.2:40000"), State: "SYN_SENT"}
	for _, lost := range []bool{false, true} {
		track := newTracker(Snapshot{}, Proxy{Outbound: []uint16{15001}}, nil, nil)
		track.look = func() ends { return nil }
		var got []Event
		track.happen(f, false, func(Event) {})
		if lost {
			track.lost()
		}
		track.happen(f, true, func(e Event) { got = append(got, e) })
		if want := map[bool]Way{false: Swallowed, true: Unknown}[lost]; len(got) != 1 || got[0].Way != want {
			t.Errorf("lost %v: %+v", lost, got)
		}
	}
}

func tuple(from, to string) Tuple {
	return Tuple{netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)}
}

// The accepting socket of an inbound connection is there only once it is established.
func TestWatchOfInbound(t *testing.T) {
	forBoth(t, "istio/tproxy", func(s *scene) {
		s.listen(s.proxy, 15001, nettest.Named("proxy"))
		next := s.watch(nil)
		begin, end := Event{}, Event{}
		for try := 0; !begin.TProxy && try < 100; try++ { // on a busy machine it may be accepted late
			release := s.hold(s.outside(), "10.77.0.2:8080", func(_ uint16, banner nettest.Banner) (*nettest.Listener, error) {
				return s.proxy.ListenTransparent(15006, banner)
			})
			begin = next("10.77.0.2:8080", Begin)
			release()
			end = next("10.77.0.2:8080", End)
		}
		if begin.Way != Reached || end.Way != Swallowed || !end.TProxy {
			s.t.Errorf("%+v\n%+v", begin, end)
		}
	})
}
