package conns

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/sockets"
)

// pod is a snapshot of istio's pod 10.77.0.2, whose proxy, process 1, listens at 15001 and 15006.
func pod(flows ...Flow) Snapshot {
	s := Snapshot{
		addresses: []netip.Addr{netip.MustParseAddr("10.77.0.2")},
		timeouts:  map[string]uint32{"ESTABLISHED": 432000, "TIME_WAIT": 120, "CLOSE": 10},
		sockets:   ends{"tcp": {}, "udp": {}},
		processes: processes{1: {PID: 1, Name: "envoy"}},
	}
	for i, f := range flows {
		f.Protocol = "tcp"
		if f.Original.Destination.Port() == 53 {
			f.Protocol = "udp"
		}
		f.State, f.Expires = "ESTABLISHED", 432000
		if f.Reply == (Tuple{}) {
			f.Reply = Tuple{f.Original.Destination, f.Original.Source}
		}
		flows[i] = f
	}
	s.flows = flows
	s.open("0.0.0.0:15001", "", 1337, 1)
	s.open("0.0.0.0:15006", "", 1337, 1)
	return s
}

// open adds a TCP socket.
func (s Snapshot) open(local, remote string, uid, inode uint32) {
	at := sockets.Socket{Local: netip.MustParseAddrPort(local), UID: uid, Inode: inode}
	if remote != "" {
		at.Remote = netip.MustParseAddrPort(remote)
	}
	s.sockets["tcp"][Tuple{at.Local, at.Remote}] = at
}

func (s Snapshot) judged(t *testing.T) Report {
	t.Helper()
	p, err := s.FindProxy("istio", redirect.Proxy{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Judge(p, nil, nil)
}

func redirected(from, to string) Flow {
	return Flow{Original: tuple(from, to), Reply: tuple("127.0.0.1:15001", from)}
}

// istio's agent has the proxy's user and a connection to istiod. It carries nothing of the application's.
func TestConnectionsOfTheProxysAgentCarryNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		inode uint32 // of the connection to istiod
		want  Way
	}{
		"by the agent":              {2, Swallowed},
		"by the proxy":              {1, Unknown},
		"by a process nobody knows": {3, Unknown},
	} {
		s := pod(redirected("10.77.0.2:40000", "10.0.0.6:7000"), Flow{Original: tuple("10.77.0.2:40001", "10.96.0.1:15012")})
		s.processes[2] = sockets.Process{PID: 2, Name: "pilot-agent"}
		s.open("10.77.0.2:40001", "10.96.0.1:15012", 1337, c.inode)
		r := s.judged(t)
		if d := r.to(t, "10.0.0.6:7000"); d.Way != c.want {
			t.Errorf("%s: %s: %s", name, d.Way, d.Why)
		}
		if d := r.to(t, "10.96.0.1:15012"); d.Way != ByProxy {
			t.Errorf("%s: %s", name, d.Way)
		}
	}
}

// The group tells the proxy, too, but only a process has one.
func TestTheProxyByItsGroup(t *testing.T) {
	t.Parallel()
	s := pod(Flow{Original: tuple("10.77.0.2:40001", "10.96.0.1:80")}, Flow{Original: tuple("10.77.0.2:40002", "10.96.0.2:80")})
	s.processes[4], s.processes[5] = sockets.Process{PID: 4, GID: 1337}, sockets.Process{PID: 5, GID: 1000}
	s.open("10.77.0.2:40001", "10.96.0.1:80", 1000, 4)
	s.open("10.77.0.2:40002", "10.96.0.2:80", 1000, 5)
	r := s.judged(t)
	if a, b := r.to(t, "10.96.0.1:80").Way, r.to(t, "10.96.0.2:80").Way; a != ByProxy || b != Direct {
		t.Errorf("%s, %s", a, b)
	}
}

// With TPROXY, the proxy connects to the application in the client's name, and rules mark that connection.
func TestTProxyInTheClientsName(t *testing.T) {
	t.Parallel()
	s := pod(Flow{Original: tuple("192.0.2.1:5000", "10.77.0.2:8080")}, Flow{Original: tuple("192.0.2.1:5001", "10.77.0.2:8080"), Mark: 1337})
	s.open("10.77.0.2:8080", "192.0.2.1:5000", 1337, 1)
	s.open("10.77.0.2:8080", "192.0.2.1:5001", 1000, 9)
	d := s.judged(t).to(t, "10.77.0.2:8080")
	if d.Way != Onward || d.Reached != 1 || len(d.Onward) != 1 || !d.Connections[0].TProxy {
		t.Errorf("%+v", d)
	}
}

func TestOnlyIstiosProxyConnectsFromThere(t *testing.T) {
	t.Parallel()
	s := pod(Flow{Original: tuple("127.0.0.6:40000", "10.77.0.2:8080")}, Flow{Original: tuple("127.0.0.1:40000", "10.77.0.2:8081")})
	r := s.judged(t)
	if a, b := r.to(t, "10.77.0.2:8080").Way, r.to(t, "10.77.0.2:8081").Way; a != ByProxy || b != Unknown {
		t.Errorf("%s, %s", a, b)
	}
}

func TestADNSQueryWithoutAnswer(t *testing.T) {
	t.Parallel()
	query := Flow{Original: tuple("10.77.0.2:40000", "10.96.0.10:53"), Reply: tuple("127.0.0.1:15053", "10.77.0.2:40000")}
	if d := pod(query).judged(t).to(t, "10.96.0.10:53"); d.Way != Swallowed || !strings.Contains(d.Why, "nothing listens at the proxy's port 15053") {
		t.Errorf("%+v", d)
	}
	s := pod(query)
	s.sockets["udp"][Tuple{Source: netip.MustParseAddrPort("127.0.0.1:15053")}] = sockets.Socket{Local: netip.MustParseAddrPort("127.0.0.1:15053"), Inode: 1}
	if d := s.judged(t).to(t, "10.96.0.10:53"); d.Way != Unknown || !strings.Contains(d.Why, "neither answered nor asked further") {
		t.Errorf("%+v", d)
	}
}

// Every listener of an OSM mesh has the same ports: what they have in common is said.
func TestFindProxyByItsListeners(t *testing.T) {
	t.Parallel()
	s := pod()
	if p, err := s.FindProxy("", redirect.Proxy{}); err != nil || p.Mesh != "istio" || len(p.Processes) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	s.open("0.0.0.0:15003", "", 1500, 6)
	delete(s.sockets["tcp"], Tuple{Source: netip.MustParseAddrPort("0.0.0.0:15006")})
	p, err := s.FindProxy("", redirect.Proxy{})
	if err != nil || p.Mesh != "" || p.has("istio") || !p.has("fsm") {
		t.Errorf("%+v, %v", p, err)
	}
	d := Destination{Direction: Out, Protocol: "tcp", To: netip.MustParseAddrPort("10.0.0.6:7000"), listener: 15001}
	if got := advice(p, &d); got != "add 7000 to spec.traffic.outboundPortExclusionList of the MeshConfig, and restart the pod" {
		t.Error(got)
	}
	if p, err = s.FindProxy("fsm", redirect.Proxy{UID: 7, Outbound: 16001}); err != nil || p.UIDs[0] != 7 || p.Outbound[0] != 16001 || p.Inbound[0] != 15003 {
		t.Errorf("%+v, %v", p, err)
	}
	p.Listening = []uint16{15001}
	if got := advice(p, &d); !strings.HasSuffix(got, "or to the pod's annotation flomesh.io/outbound-port-exclusion-list, and restart the pod") {
		t.Error(got)
	}
}

// Who dials the proxy's port is not redirected to it.
func TestDialingTheProxyItself(t *testing.T) {
	t.Parallel()
	s := pod(Flow{Original: tuple("127.0.0.1:40000", "127.0.0.1:15001")})
	s.open("127.0.0.1:40000", "127.0.0.1:15001", 1000, 9)
	if d := s.judged(t).to(t, "127.0.0.1:15001"); d.Way != Within || d.Reached != 0 {
		t.Errorf("%+v", d)
	}
}

func TestDirectAndRedirectedToOneDestination(t *testing.T) {
	t.Parallel()
	s := pod(redirected("10.77.0.2:40000", "10.0.0.6:7000"), Flow{Original: tuple("10.77.0.2:40001", "10.0.0.6:7000")})
	s.open("10.77.0.2:40001", "10.0.0.6:7000", 1000, 9)
	const want = "1 connection reached the proxy, none left it; 1 connection went direct"
	if d := s.judged(t).to(t, "10.0.0.6:7000"); d.Way != Swallowed || d.Sentence != want {
		t.Errorf("%+v", d)
	}
}

func TestAnEmptyReportHasListsInJSON(t *testing.T) {
	var p Proxy
	s := Snapshot{sockets: ends{"tcp": {}, "udp": {}}}
	s.meet(&p)
	text, err := json.Marshal(s.Judge(p, nil, nil))
	for _, want := range []string{`"listening":[]`, `"destinations":[]`} {
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("no %s: %v: %s", want, err, text)
		}
	}
}
