package agent

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// startSilent starts an agent to which its API server is always silent for too long.
func startSilent(t *testing.T) (*agenttest.Server, *Agent) {
	t.Helper()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newPatientAgent(t, s, nil, func(p *timing) { p.silence = 0 })
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	return s, a
}

// After a long silence, what the API server says counts, and the cache only if it says nothing.
func TestAfterALongSilence(t *testing.T) {
	t.Parallel()
	refusal := agenttest.Refusal
	tests := []struct {
		name   string
		server http.HandlerFunc
		live   bool
		want   string // in the error
	}{
		{"it answers", nil, true, ""},
		{"it has no such pod", refusal(404, "NotFound"), false, "404"},
		{"it forbids", refusal(403, "Forbidden"), false, "403"},
		{"it has too much to do", refusal(429, "TooManyRequests"), false, ""},
		{"it fails", refusal(500, "InternalError"), false, ""},
		{"it hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, a := startSilent(t)
			if tt.server != nil {
				s.Update(func() { s.Refuse["GET "+agenttest.PodPath("shop", "a")] = tt.server })
			}
			answer := ask(t, a, "a", "uid-a")
			if (tt.want == "") != (answer.Error == "") || !strings.Contains(answer.Error, tt.want) {
				t.Errorf("error %q, want %q", answer.Error, tt.want)
			}
			if old := tt.want == "" && !tt.live; old != strings.Contains(answer.Old, "the API server has been silent for") {
				t.Errorf("old %v: %q", old, answer.Old)
			}
			if n := s.Count("GET " + agenttest.PodPath("shop", "a")); n == 0 {
				t.Error("it was not asked")
			}
		})
	}
}

// A watch of the configuration that has died counts as much as one of the pods.
func TestTheSilenceAboutTheConfigurationCounts(t *testing.T) {
	t.Parallel()
	s, a := startServed(t, nil)
	p, ok := a.cache.Pod(pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"})
	if !ok {
		t.Fatal("the pod is not there")
	}
	time.Sleep(time.Second)
	before := a.cache.AgeOf(p)
	s.Put(agenttest.PodPath("shop", "b"), agenttest.Pod("b"))
	agenttest.Eventually(t, "the pods are younger", func() bool { return a.cache.Age() < before })
	if after := a.cache.AgeOf(p); after < before {
		t.Errorf("an event about a pod makes the configuration younger: %s, %s", before, after)
	}
	agenttest.Eventually(t, "both are younger", func() bool {
		s.Put(agenttest.PodPath("shop", "b"), agenttest.Pod("b"))
		s.Put(agenttest.ConfigPath, agenttest.Config())
		return a.cache.AgeOf(p) < before
	})
}

// While the configuration can't be had, a pod that needs none waits for nothing.
func TestAPodWithoutTheSidecarWaitsForNoConfiguration(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Refuse["GET /apis/config.openservicemesh.io"] = agenttest.Refusal(500, "InternalError")
	alone := agenttest.Pod("alone")
	alone["spec"] = agenttest.Fields{"nodeName": "n1", "containers": []agenttest.Fields{{"name": "app"}}}
	s.Put(agenttest.PodPath("shop", "alone"), alone)
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.cache.HasPods() && a.socket.Serving() })
	s.SetDown(true)
	if answer := ask(t, a, "alone", "uid-alone"); answer.Error != "" || len(answer.Pod) == 0 {
		t.Errorf("%+v", answer)
	}
}
