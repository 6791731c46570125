package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// hangs makes the API server hang for every pod that the cache does not have, and counts the requests that it holds.
func hangs(s *agenttest.Server) (held *atomic.Int64) {
	held = new(atomic.Int64)
	s.Update(func() {
		for i := range pending {
			s.Refuse["GET "+agenttest.PodPath("shop", pendingPod(i))] = func(_ http.ResponseWriter, r *http.Request) {
				held.Add(1)
				defer held.Add(-1)
				<-r.Context().Done()
			}
		}
	})
	return held
}

// pending is more than the agent ever serves side by side.
const pending = 300

func pendingPod(i int) string { return fmt.Sprintf("pending-%d", i) }

// askInVain sends lookups of all pending pods, and hangs up when hangUp is called.
func askInVain(t *testing.T, a *Agent) (hangUp func()) {
	t.Helper()
	var conns []net.Conn
	for i := range pending {
		conn, err := net.Dial("unix", a.conf.Socket)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		request := agentapi.Request{Lookup: &pod.ID{Namespace: "shop", Name: pendingPod(i), UID: "u"}}
		if err := json.NewEncoder(conn).Encode(request); err != nil {
			t.Fatal(err)
		}
	}
	hangUp = sync.OnceFunc(func() {
		for _, conn := range conns {
			conn.Close()
		}
	})
	t.Cleanup(hangUp)
	return hangUp
}

// startPatient starts an agent that waits for the API server for an hour, and for a request for the time given.
func startPatient(t *testing.T, request time.Duration) (*agenttest.Server, *Agent) {
	t.Helper()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	a := newPatientAgent(t, s, nil, func(p *timing) { p.lookup, p.request = time.Hour, request })
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	return s, a
}

func TestLookupsThatWaitForTheAPIServerHoldNoCachedOneUp(t *testing.T) {
	t.Parallel()
	s, a := startPatient(t, hasty.request)
	held := hangs(s)
	hangUp := askInVain(t, a)
	agenttest.Eventually(t, "the API server has all that it is to have", func() bool { return held.Load() == maxLive })

	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			if answer := ask(t, a, "a", "uid-a"); answer.Error != "" || len(answer.Pod) == 0 {
				t.Errorf("a cached pod: %+v", answer)
			}
		})
	}
	all.Wait()
	if n := held.Load(); n != maxLive {
		t.Errorf("the API server has %d requests, want %d", n, maxLive)
	}

	hangUp()
	agenttest.Eventually(t, "the lookups end with those who asked", func() bool { return held.Load() == 0 && len(a.lives) == 0 })
	if n := s.Count("GET " + agenttest.PodPath("shop", "pending-")); n > pending {
		t.Errorf("%d requests for %d lookups", n, pending)
	}
	// All slots are free again.
	s.Put(agenttest.PodPath("shop", "b"), agenttest.Pod("b"))
	if answer := ask(t, a, "b", ""); answer.Error != "" {
		t.Errorf("a live lookup afterwards: %+v", answer)
	}
}

func TestALookupThatGetsNoSlotSaysSoInTime(t *testing.T) {
	t.Parallel()
	_, a := startServed(t, nil)
	for range maxLive {
		a.lives <- struct{}{}
	}
	if answer := ask(t, a, "b", "uid-b"); answer.NotFound || !strings.Contains(answer.Error, fmt.Sprintf("get pod shop/b: %d other lookups wait for the API server", maxLive)) {
		t.Errorf("got %+v", answer)
	}
}

// What comes after the request, such as its end of line, does not mean that the peer hangs up.
func TestAPeerThatSendsMoreIsStillThere(t *testing.T) {
	t.Parallel()
	s, a := startPatient(t, 2*time.Second)
	conn, err := net.Dial("unix", a.conf.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	release := make(chan struct{})
	asked := make(chan struct{}, 1)
	s.Update(func() {
		s.Refuse["GET "+agenttest.PodPath("shop", "a")] = func(w http.ResponseWriter, r *http.Request) {
			asked <- struct{}{}
			<-release
			s.Get(w, r)
		}
	})
	io.WriteString(conn, `{"lookup":{"namespace":"shop","name":"a"}}`)
	<-asked
	io.WriteString(conn, "\n")
	time.Sleep(a.timing.request + 100*time.Millisecond) // that was the time to send the request in
	close(release)
	var answer agentapi.Answer
	if err := json.NewDecoder(conn).Decode(&answer); err != nil || answer.Error != "" {
		t.Errorf("%v, %+v", err, answer)
	}
}

// If the plugin may not ask the API server itself, a slow API server is no reason to fail.
func TestAnAPIServerThatTakesLongIsWaitedForThroughTheAgent(t *testing.T) {
	t.Parallel()
	s, a := startPatient(t, hasty.request)
	s.Update(func() {
		s.Refuse["GET "+agenttest.PodPath("shop", "a")] = func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(500 * time.Millisecond)
			s.Get(w, r)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := kube.NewAgent(a.conf.Socket, "").Lookup(ctx, kube.NewRequest(a.conf.Dialect, pod.ID{Namespace: "shop", Name: "a"})) // no UID: no cache
	if n := s.Count("GET " + agenttest.PodPath("shop", "a")); err != nil || len(got.Pod) == 0 || n != 1 {
		t.Errorf("%d requests, %v", n, err)
	}
}
