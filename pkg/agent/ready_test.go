package agent

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
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
