package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func tell(t testing.TB, a *Agent, r agentapi.Report) {
	t.Helper()
	answer, err := agentapi.Call(t.Context(), a.conf.Socket, agentapi.Request{Report: &r}, nettest.Patience)
	if err != nil || answer.Error != "" {
		t.Fatalf("report: %v %s", err, answer.Error)
	}
}

func get(a *Agent, path string) (int, string) {
	w := httptest.NewRecorder()
	a.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	body, _ := io.ReadAll(w.Body)
	return w.Code, string(body)
}

func wantMetrics(t testing.TB, a *Agent, lines ...string) {
	t.Helper()
	_, text := get(a, "/metrics")
	for _, line := range lines {
		if !strings.Contains("\n"+text, "\n"+line+"\n") {
			t.Errorf("metrics lack %q", line)
		}
	}
	if t.Failed() {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "detour_") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// malformed sends what is no request, and waits until the agent hangs up.
func malformed(t testing.TB, socket string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "x")
	io.ReadAll(conn)
}

func TestReportsAreCounted(t *testing.T) {
	t.Parallel()
	_, a := startServed(t, func(c *Config) {
		c.ExcludeNamespaces = []string{"shop"}
		c.TokenExpiry = func() time.Time { return time.Unix(1795, 0) }
	})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"}, Outcome: "programmed", Backend: "iptables-nft", Stages: map[string]float64{"total": 8.5, "apply": 4, "invented": 1, "lookup": -1}})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "b"}, Outcome: "skipped", Reason: "it has no container", Fallback: true})
	tell(t, a, agentapi.Report{Outcome: "skipped", Reason: "it is not a Kubernetes pod"})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "c"}, Outcome: "failed", Code: 11, Reason: "no answer"})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "c"}, Outcome: "failed", Code: 12345})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "c"}, Outcome: "allowed", Code: 999})
	ask(t, a, "a", "uid-a")
	a.CountInstall("binary")
	a.CountConflict()
	malformed(t, a.conf.Socket)
	wantMetrics(t, a,
		`detour_adds_total{outcome="programmed",reason_class="none"} 1`,
		`detour_adds_total{outcome="skipped",reason_class="none"} 2`,
		`detour_adds_total{outcome="failed",reason_class="api-server"} 1`,
		`detour_adds_total{outcome="failed",reason_class="other"} 1`,
		`detour_adds_total{outcome="allowed",reason_class="plugin-error"} 1`,
		`detour_adds_total{outcome="failed",reason_class="pod-refused"} 0`,
		`detour_add_stage_seconds_bucket{stage="total",le="0.005"} 0`,
		`detour_add_stage_seconds_bucket{stage="total",le="0.01"} 1`,
		`detour_add_stage_seconds_count{stage="other"} 1`,
		`detour_lookups_total{from="cache"} 1`,
		`detour_lookups_total{from="fallback"} 1`,
		`detour_lookups_total{from="failed"} 0`,
		`detour_malformed_requests_total 1`,
		`detour_installs_total{what="binary"} 1`,
		`detour_install_conflicts_total 1`,
		`detour_pods_unprogrammed 0`,
		`detour_ready 1`,
		`detour_token_expiry_timestamp_seconds 1795`,
	)
	_, text := get(a, "/metrics")
	for _, words := range []string{`detour_build_info{commit="unknown",goversion="go`, `version="development"} 1`, "go_goroutines", "process_resident_memory_bytes"} {
		if !strings.Contains(text, words) {
			t.Errorf("metrics lack %q", words)
		}
	}
	if !regexp.MustCompile(`\ndetour_cache_age_seconds \d{1,2}(\.\d+)?\n`).MatchString(text) {
		t.Error("metrics lack the age of the cache, or it is too high")
	}
	if strings.Contains(text, `stage="lookup"`) {
		t.Error("a time before now is counted")
	}
}

func TestAPodsOwnerIsToldOnceWhatOnlyHeCanMend(t *testing.T) {
	t.Parallel()
	s, a := startServed(t, func(c *Config) { c.ExcludeNamespaces = []string{"shop"} }) // no pod counts as unprogrammed
	refused := agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"}, Outcome: "failed", Code: 100, Reason: strings.Repeat("ü", 1000)}
	for range 5 {
		tell(t, a, refused)
	}
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "b", UID: "uid-b"}, Outcome: "failed", Code: 999})
	tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "c", UID: "uid-c"}, Outcome: "failed", Code: 100, Reason: "bad list"})
	const path = "/api/v1/namespaces/shop/events"
	agenttest.Eventually(t, "two Events are written", func() bool { return len(s.Written("POST", path)) == 2 })
	first, second := s.Written("POST", path)[0].Body, s.Written("POST", path)[1].Body
	object := first["involvedObject"].(agenttest.Fields)
	message := first["message"].(string)
	if object["uid"] != "uid-a" || object["name"] != "a" || object["kind"] != "Pod" || first["type"] != "Warning" || first["reason"] != "DetourRefused" ||
		len(message) > 1024 || !strings.HasSuffix(message, "ü...") || !strings.HasPrefix(first["metadata"].(agenttest.Fields)["name"].(string), "a.") {
		t.Errorf("Event %v", first)
	}
	if second["reason"] != "DetourRefused" || second["message"] != "bad list" {
		t.Errorf("Event %v", second)
	}
	agenttest.Eventually(t, "repetitions are counted", func() bool {
		_, text := get(a, "/metrics")
		return strings.Contains(text, `detour_events_total{result="repeated"} 4`)
	})
	if patches := s.Written("PATCH", path); patches != nil {
		t.Errorf("patched within the window: %v", patches)
	}
}

// The API server hangs; neither the socket nor the callers of the recorder wait for it.
func TestEventsNeverBlock(t *testing.T) {
	t.Parallel()
	s, a := startServed(t, nil)
	var hanging, most atomic.Int64
	s.Update(func() {
		s.Refuse["POST /api/v1/namespaces/shop/events"] = func(_ http.ResponseWriter, r *http.Request) {
			if n := hanging.Add(1); n > 1 {
				most.Store(n)
			}
			defer hanging.Add(-1)
			io.Copy(io.Discard, r.Body) // or the server would not notice the client's end
			<-r.Context().Done()
		}
	})
	began := time.Now()
	for i := range 3 * 256 {
		tell(t, a, agentapi.Report{ID: pod.ID{Namespace: "shop", Name: "p", UID: fmt.Sprint(i)}, Outcome: "failed", Code: 100, Reason: "r"})
	}
	if took := time.Since(began); took > 2*nettest.Patience {
		t.Errorf("%d reports took %s", 3*256, took)
	}
	_, text := get(a, "/metrics")
	if !strings.Contains(text, `detour_events_total{result="dropped"}`) {
		t.Error("no Event was dropped, so nothing shows that recording does not wait")
	}
	if most.Load() > 0 {
		t.Errorf("%d requests at once", most.Load())
	}
}
