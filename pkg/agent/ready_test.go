package agent

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/nettest"
)

func TestReadinessSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.SetDown(true)
	var installed atomic.Bool
	a := newTestAgent(t, s, func(c *Config) { c.Installed = func() (bool, string) { return installed.Load(), "no conflist" } })
	code, body := get(a, "/readyz")
	for _, words := range []string{"installation: no conflist\n", "socket: nobody answers at " + a.conf.Socket, "cache: it is not complete, and the API server can't be asked instead: get pods"} {
		if code != http.StatusServiceUnavailable || !strings.Contains(body, words) {
			t.Errorf("%d %q lacks %q", code, body, words)
		}
	}
	wantMetrics(t, a, "detour_ready 0")
	if code, _ := get(a, "/healthz"); code != 200 {
		t.Errorf("alive: %d", code)
	}
	stop := start(t, a)
	installed.Store(true)
	agenttest.Eventually(t, "only the API server is missing", func() bool {
		m := a.Missing(t.Context())
		return len(m) == 1 && strings.HasPrefix(m[0], "cache: ")
	})
	// The cache may not be filled: that the API server answers is enough.
	s.Update(func() { s.Refuse["GET /api/v1/pods"] = agenttest.Refusal(403, "Forbidden") })
	s.SetDown(false)
	agenttest.Eventually(t, "live requests stand in for the cache", func() bool { code, body := get(a, "/readyz"); return code == 200 && body == "ok\n" })
	wantMetrics(t, a, "detour_ready 1")
	if a.cache.HasPods() {
		t.Error("the cache was filled without the right to list")
	}
	s.Update(func() { clear(s.Refuse) })
	agenttest.Eventually(t, "the cache is complete", a.isSynced)
	s.SetDown(true)
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

// Whoever reaches the port may ask, and a runtime asks again and again. None of that may reach the API server.
func TestReadinessCostsTheAPIServerNothing(t *testing.T) {
	nettest.RequireNetns(t) // root: the socket serves nobody else
	tests := []struct {
		name     string
		whole    bool // the cache is, before the API server becomes as it is
		become   func(*agenttest.Server)
		ready    bool
		requests int // at most, for a thousand questions
	}{
		{"the cache is whole", true, func(*agenttest.Server) {}, true, 0},
		{"the API server is down", true, func(s *agenttest.Server) { s.SetDown(true) }, true, 0},
		{"pods can't be listed", false, func(s *agenttest.Server) { s.Refuse["GET /api/v1/pods"] = agenttest.Refusal(403, "Forbidden") }, true, 10},
		{"the API server was never there", false, func(s *agenttest.Server) { s.SetDown(true) }, false, 40}, // it is tried again for a while
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := agenttest.NewServer(t)
			s.Put(agenttest.ConfigPath, agenttest.Config())
			if !tt.whole {
				tt.become(s)
			}
			a := newPatientAgent(t, s, nil, func(p *timing) { p.probe, p.config = time.Hour, time.Hour })
			start(t, a)
			agenttest.Eventually(t, "the agent serves", func() bool { return a.socket.Serving() && (a.isSynced() || !tt.whole) })
			if tt.whole {
				tt.become(s)
				time.Sleep(50 * time.Millisecond) // the watches end
			}
			requests := func() int {
				return len(slices.DeleteFunc(s.Requests(), func(r string) bool { return strings.Contains(r, "resourceVersion") }))
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
	s := agenttest.NewServer(t)
	s.Update(func() { s.Refuse["GET /api/v1/pods"] = agenttest.Refusal(403, "Forbidden") })
	s.SetDown(true)
	a := newTestAgent(t, s, nil) // it does not run
	if a.noLookups(t.Context()) == "" {
		t.Error("ready with nobody to ask")
	}
	s.SetDown(false)
	agenttest.Eventually(t, "the API server is back", func() bool { return a.noLookups(t.Context()) == "" })
	s.SetDown(true)
	agenttest.Eventually(t, "the API server is down", func() bool { return a.noLookups(t.Context()) != "" })
}

// A peer that hangs up during the request says nothing about the API server.
func TestAPeerThatLeavesIsNoReasonToBeUnready(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t, agenttest.NewServer(t), nil)
	a.timing.probe = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if why := a.noLookups(ctx); why != "" {
		t.Error(why)
	}
}

func TestReadinessSaysThatTheAPIServerIsSilent(t *testing.T) {
	t.Parallel()
	_, a := startServed(t, nil)
	if code, body := get(a, "/readyz"); code != 200 || body != "ok\n" {
		t.Errorf("at first: %d %q", code, body)
	}
	if remark := a.remark(7 * time.Minute); !strings.Contains(remark, "said nothing for 7m0s: pods that the agent knows start") {
		t.Errorf("after a while: %q", remark)
	}
}

func TestEachEventMakesTheCacheYoung(t *testing.T) {
	t.Parallel()
	s, a := startServed(t, nil)
	time.Sleep(200 * time.Millisecond)
	age := a.cache.Age() // without an event it only grows
	s.Put(agenttest.PodPath("shop", "b"), agenttest.Pod("b"))
	agenttest.Eventually(t, "it is younger", func() bool { return a.cache.Age() < age })
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	_, a := startServed(t, nil)
	if code, _ := get(a, "/metrics"); code != 200 {
		t.Error(code)
	}
}
