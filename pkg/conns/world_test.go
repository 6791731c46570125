package conns

import (
	"net/netip"
	"os"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// scene is a pod that a mesh's case programs, with its proxy and its application, and servers at all addresses outside.
type scene struct {
	t          *testing.T
	world      *nettest.World
	ns         *netns.Pod
	app, proxy nettest.Process
	ports      redirect.Proxy
}

func startScene(t *testing.T, name, choice string) *scene {
	t.Helper()
	decision, err := testcase.Find(t, "../..", name).Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, world: nettest.StartWorld(t), ports: decision.Policy.Sidecar()}
	if s.ns, err = netns.Open(s.world.Pod.Path()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.ns.Close() })
	lock, err := s.ns.Lock(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	err = s.ns.Do(func() error {
		program, err := backend.Prepare(t.Context(), choice, decision.Policy.Ruleset(), decision.Families)
		if err != nil {
			return err
		}
		return program.Apply(t.Context(), lock, attachment.Record{})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.app = nettest.Process{Namespace: s.world.Pod, UID: nettest.AppUID, GID: nettest.AppGID}
	s.proxy = nettest.Process{Namespace: s.world.Pod, UID: s.ports.UID, GID: s.ports.UID}
	return s
}

// forBoth runs a test with the iptables and the nftables backend.
func forBoth(t *testing.T, name string, test func(*scene)) {
	t.Parallel()
	for _, choice := range []string{backend.IPTables, backend.NFTables} {
		t.Run(choice, func(t *testing.T) {
			t.Parallel()
			test(startScene(t, name, choice))
		})
	}
}

func (s *scene) listen(p nettest.Process, port uint16, banner nettest.Banner) {
	s.t.Helper()
	l, err := p.Listen(port, banner)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := l.Close(); err != nil {
			s.t.Error(err)
		}
	})
}

// serve has the servers outside listen at the ports.
func (s *scene) serve(ports ...uint16) {
	s.t.Helper()
	for _, port := range ports {
		s.listen(nettest.Process{Namespace: s.world.Outside}, port, nettest.Named("server"))
	}
}

// relay starts the proxy, which passes on what goes out by route and what comes in to the application at the loopback.
func (s *scene) relay(route func(netip.AddrPort) netip.AddrPort) {
	s.t.Helper()
	s.listen(s.proxy, s.ports.Outbound, s.proxy.Relay(route))
	s.listen(s.proxy, s.ports.Inbound, s.proxy.Relay(func(to netip.AddrPort) netip.AddrPort {
		loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if to.Addr().Is6() {
			loopback = netip.IPv6Loopback()
		}
		return netip.AddrPortFrom(loopback, to.Port())
	}))
}

func (s *scene) ask(p nettest.Process, to, want string) {
	s.t.Helper()
	got, err := p.Ask(nettest.Call{Destination: netip.MustParseAddrPort(to)})
	if err != nil {
		got = err.Error()
	}
	if got != want {
		s.t.Fatalf("%s answers %q, want %q", to, got, want)
	}
}

func (s *scene) read() Snapshot {
	s.t.Helper()
	snapshot, err := Read(s.ns)
	if err != nil {
		s.t.Fatal(err)
	}
	return snapshot
}

func (s *scene) judge() Report {
	s.t.Helper()
	snapshot := s.read()
	p, err := snapshot.FindProxy("", redirect.Proxy{})
	if err != nil {
		s.t.Fatal(err)
	}
	return snapshot.Judge(p, nil, nil)
}

// to finds what became of the connections to an address.
func (r Report) to(t *testing.T, to string) Destination {
	t.Helper()
	for _, d := range r.Destinations {
		if d.To.String() == to {
			return d
		}
	}
	t.Fatalf("nothing about %s in %+v", to, r.Destinations)
	return Destination{}
}
