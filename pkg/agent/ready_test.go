package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/nettest"
)

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.setDown(true)
	var installed atomic.Bool
	a := newTestAgent(t, s, func(c *Config) { c.Installed = func() (bool, string) { return installed.Load(), "no conflist" } })
	code, body := get(a, "/readyz")
	for _, words := range []string{"installation: no conflist\n", "socket: nobody answers at " + a.conf.Socket, "cache: it is not complete, and the API server can't be asked instead: get pods"} {
		if code != http.StatusServiceUnavailable || !strings.Contains(body, words) {
			t.Errorf("%d %q lacks %q", code, body, words)
		}
	}
	if code, _ := get(a, "/healthz"); code != 200 {
		t.Errorf("alive: %d", code)
	}
	stop := start(t, a)
	installed.Store(true)
	eventually(t, "only the API server is missing", func() bool {
		m := a.Missing(t.Context())
		return len(m) == 1 && strings.HasPrefix(m[0], "cache: ")
	})
	// The cache may not be filled: that the API server answers is enough.
	s.update(func() { s.refuse["GET /api/v1/pods"] = refusal(403, "Forbidden") })
	s.setDown(false)
	eventually(t, "live requests stand in for the cache", func() bool { code, body := get(a, "/readyz"); return code == 200 && body == "ok\n" })
	if a.pods.isSynced() {
		t.Error("the cache was filled without the right to list")
	}
	s.update(func() { clear(s.refuse) })
	eventually(t, "the cache is complete", a.isSynced)
	s.setDown(true)
	if code, body := get(a, "/readyz"); code != 200 {
		t.Errorf("with the API server down: %s", body)
	}
	installed.Store(false)
	if code, _ := get(a, "/readyz"); code != 503 {
		t.Error("ready without an installation")
	}
	stop()
	if m := a.Missing(t.Context()); len(m) < 2 {
		t.Errorf("after the end: %q", m)
	}
}

// Whoever reaches the port may ask, and a runtime asks again and again: none of that may reach the API server.
func TestReadinessCostsTheAPIServerNothing(t *testing.T) {
	nettest.RequireNetns(t) // root, whom alone the socket serves
	tests := []struct {
		name     string
		whole    bool // the cache is, before the API server becomes as it is
		become   func(*apiServer)
		ready    bool
		requests int // at most, for a thousand questions
	}{
		{"the cache is whole", true, func(*apiServer) {}, true, 0},
		{"the API server is down", true, func(s *apiServer) { s.setDown(true) }, true, 0},
		{"pods can't be listed", false, func(s *apiServer) { s.refuse["GET /api/v1/pods"] = refusal(403, "Forbidden") }, true, 10},
		{"the API server was never there", false, func(s *apiServer) { s.setDown(true) }, false, 40}, // it is tried again for a while
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newAPIServer(t)
			s.put(configPath, testConfig())
			if !tt.whole {
				tt.become(s)
			}
			a := newTestAgent(t, s, nil)
			a.timing.probe, a.config.again = time.Hour, time.Hour
			start(t, a)
			eventually(t, "the agent serves", func() bool { return a.socket.at(a.conf.Socket) && (a.isSynced() || !tt.whole) })
			if tt.whole {
				tt.become(s)
				time.Sleep(50 * time.Millisecond) // the watches end
			}
			requests := func() int {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(slices.DeleteFunc(slices.Clone(s.requests), func(r string) bool { return strings.Contains(r, "resourceVersion") }))
			}
			fromPlugin := kube.NewAgent(a.conf.Socket, "")
			before := requests()
			for range 500 {
				code, body := get(a, "/readyz")
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				err := fromPlugin.Ready(ctx, a.conf.Dialect.Config)
				cancel()
				if (code == 200) != tt.ready || (err == nil) != tt.ready {
					t.Fatalf("/readyz says %d %q, the plugin %v", code, body, err)
				}
			}
			if n := requests() - before; n > tt.requests {
				t.Errorf("%d requests, want at most %d", n, tt.requests)
			}
		})
	}
}

func TestReadinessIsAskedForAnewInTime(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.update(func() { s.refuse["GET /api/v1/pods"] = refusal(403, "Forbidden") })
	s.setDown(true)
	a := newTestAgent(t, s, nil) // it does not run
	if a.noLookups(t.Context()) == "" {
		t.Error("ready with nobody to ask")
	}
	s.setDown(false)
	eventually(t, "the API server is back", func() bool { return a.noLookups(t.Context()) == "" })
	s.setDown(true)
	eventually(t, "the API server is down", func() bool { return a.noLookups(t.Context()) != "" })
}

// A peer that goes away while the API server is asked says nothing about the API server.
func TestAPeerThatLeavesIsNoReasonToBeUnready(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t, newAPIServer(t), nil)
	a.timing.probe = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if why := a.noLookups(ctx); why != "" {
		t.Error(why)
	}
}

func TestReadinessSaysThatTheAPIServerIsSilent(t *testing.T) {
	t.Parallel()
	_, a, _ := startServed(t, nil)
	if code, body := get(a, "/readyz"); code != 200 || body != "ok\n" {
		t.Errorf("at first: %d %q", code, body)
	}
	a.pods.mu.Lock()
	a.pods.heard = time.Now().Add(-7 * time.Minute)
	a.pods.mu.Unlock()
	if code, body := get(a, "/readyz"); code != 200 || !strings.HasPrefix(body, "ok") || !strings.Contains(body, "said nothing for 7m0s: pods that the agent knows start") {
		t.Errorf("%d %q", code, body)
	}
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	_, a, _ := startServed(t, nil)
	l, err := listenTCP(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go a.serveHTTP(t.Context(), l)
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", err, resp)
	}
	resp.Body.Close()
}

func node(taints ...fields) fields {
	return fields{"kind": "Node", "apiVersion": "v1", "metadata": fields{"name": "n1"}, "spec": fields{"taints": taints}}
}

var (
	ours   = fields{"key": "detour.io/not-ready", "effect": "NoSchedule"}
	others = fields{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
)

func TestTheTaintGoesWhenTheNodeIsReady(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.put(nodePath, node(others, fields{"key": "detour.io/not-ready", "effect": "NoExecute"}, ours))
	var installed, conflicts atomic.Int64
	s.refuse["PATCH "+nodePath] = func(w http.ResponseWriter, r *http.Request) {
		if conflicts.Add(1) == 1 { // somebody was faster
			s.put(nodePath, node(ours, others))
			refusal(422, "Invalid")(w, r)
			return
		}
		s.write(w, r)
		s.put(nodePath, node(others))
	}
	a := newTestAgent(t, s, func(c *Config) {
		c.RemoveTaint = true
		c.Installed = func() (bool, string) { return installed.Load() > 0, "no" }
	})
	start(t, a)
	eventually(t, "the cache is complete", func() bool { return a.pods.isSynced() })
	time.Sleep(100 * time.Millisecond)
	if s.count("PATCH "+nodePath) != 0 {
		t.Fatal("the taint went before the node was ready")
	}
	installed.Store(1)
	eventually(t, "the taint goes", func() bool { return len(s.written("PATCH", nodePath)) == 1 })
	p := s.written("PATCH", nodePath)[0]
	got, _ := json.Marshal(p.patch)
	want := `[{"op":"test","path":"/spec/taints/0","value":{"effect":"NoSchedule","key":"detour.io/not-ready"}},{"op":"remove","path":"/spec/taints/0"}]`
	if string(got) != want || p.contentType != jsonPatch {
		t.Errorf("patch %s %s", p.contentType, got)
	}
	s.put(nodePath, node(others, ours)) // the node was made anew
	eventually(t, "the taint goes again", func() bool { return len(s.written("PATCH", nodePath)) == 2 })
}

func TestTheTaintStaysUnlessAsked(t *testing.T) {
	t.Parallel()
	s, _, _ := startServed(t, nil)
	s.put(nodePath, node(ours))
	time.Sleep(100 * time.Millisecond)
	if n := s.count("GET /api/v1/nodes"); n != 0 {
		t.Errorf("the node was asked for %d times", n)
	}
}
