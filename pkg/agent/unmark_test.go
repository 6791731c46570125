package agent

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
)

// unmarking is an unmark that goes on.
type unmarking struct {
	ended chan error
	mu    sync.Mutex
	log   bytes.Buffer
	// served is how often pods were given what they need to start without an agent.
	served atomic.Int32
}

func (u *unmarking) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.log.Write(p)
}

func (u *unmarking) says(words string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return strings.Contains(u.log.String(), words)
}

func startUnmark(t *testing.T, s *agenttest.Server, settle time.Duration) *unmarking {
	u := &unmarking{ended: make(chan error, 1)}
	kubeconfig := s.Kubeconfig(t)
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	go func() {
		u.ended <- unmark(ctx, kubeconfig, "n1", slog.New(slog.NewJSONHandler(u, nil)), u.serve, settle)
	}()
	return u
}

func (u *unmarking) serve() error {
	u.served.Add(1)
	return nil
}

func (u *unmarking) goesOn() bool { return len(u.ended) == 0 }

// selectingPod is a pod that lost its init container at admission.
func selectingPod(name, phase string) agenttest.Fields {
	p := agenttest.Pod(name)
	p["spec"].(agenttest.Fields)["nodeSelector"] = agenttest.Fields{readyLabel: "true"}
	p["status"] = agenttest.Fields{"phase": phase}
	return p
}

func TestUnmarkTakesTheLabelOffAndWaitsForThePodsThatSelectIt(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	n := newFakeNode(s)
	n.put(labels{readyLabel: "true", "zone": "a"}, ours)
	for name, phase := range map[string]string{"late": "Pending", "runs": "Running", "done": "Succeeded", "failed": "Failed"} {
		s.Put(agenttest.PodPath("shop", name), selectingPod(name, phase))
	}
	s.Put(agenttest.PodPath("shop", "other"), agenttest.Pod("other"))
	elsewhere := selectingPod("elsewhere", "Running")
	elsewhere["spec"].(agenttest.Fields)["nodeName"] = "n2"
	s.Put(agenttest.PodPath("shop", "elsewhere"), elsewhere)

	u := startUnmark(t, s, 50*time.Millisecond)
	agenttest.Eventually(t, "it waits", func() bool { return u.says(`"pods":["shop/late","shop/runs"]`) })
	if !n.is(labels{"zone": "a"}, ours) {
		t.Errorf("meanwhile the labels are %v", n.labels)
	}
	served := u.served.Load()
	agenttest.Eventually(t, "it serves other pods", func() bool { return u.served.Load() > served })
	s.Put(agenttest.PodPath("shop", "late"), nil)
	agenttest.Eventually(t, "it waits for one", func() bool { return u.says(`"pods":["shop/runs"]`) })
	s.Put(agenttest.PodPath("shop", "runs"), selectingPod("runs", "Succeeded"))
	if err := <-u.ended; err != nil {
		t.Error(err)
	}
	requests := s.Requests()
	patch := slices.Index(requests, "PATCH "+agenttest.NodePath)
	look := slices.IndexFunc(requests, func(r string) bool { return strings.HasPrefix(r, "GET /api/v1/pods") })
	if patch < 0 || look < patch {
		t.Errorf("it looked for pods before the label was gone: %q", requests)
	}
}

// The scheduler may have chosen the node a moment before the label went.
func TestUnmarkWaitsForAPodThatIsOnItsWay(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	n := newFakeNode(s)
	n.put(labels{readyLabel: "true"})
	u := startUnmark(t, s, 3*time.Second)
	agenttest.Eventually(t, "the label goes", func() bool { return n.is(labels{}) })
	s.Put(agenttest.PodPath("shop", "late"), selectingPod("late", "Pending"))
	agenttest.Eventually(t, "it waits", func() bool { return u.says(`"pods":["shop/late"]`) || !u.goesOn() })
	if !u.goesOn() {
		t.Error("it did not wait")
	}
}

func TestUnmarkFailsUnlessTheLabelIsGone(t *testing.T) {
	t.Parallel()
	const get, patch = "GET " + agenttest.NodePath, "PATCH " + agenttest.NodePath
	tests := []struct {
		name    string
		prepare func(*agenttest.Server)
		want    string // in the error
	}{
		{"no component ready-node, so no right", func(s *agenttest.Server) { s.Refuse[get] = agenttest.Refusal(403, "Forbidden") }, ""},
		{"no node", func(s *agenttest.Server) { s.Put(agenttest.NodePath, nil) }, ""},
		{"no label", func(s *agenttest.Server) { newFakeNode(s).put(labels{"zone": "a"}) }, ""},
		{"no right to patch", func(s *agenttest.Server) { s.Refuse[patch] = agenttest.Refusal(403, "Forbidden") }, "take the label detour.io/ready off node n1: PATCH"},
		{"a policy refuses", func(s *agenttest.Server) { s.Refuse[patch] = agenttest.Refusal(422, "Invalid") }, "take the label detour.io/ready off node n1: PATCH"},
		{"the token is refused", func(s *agenttest.Server) { s.Refuse[get] = agenttest.Refusal(401, "Unauthorized") }, "take the label detour.io/ready off node n1: get"},
		{"no API server", func(s *agenttest.Server) { s.CloseClientConnections(); s.Close() }, "take the label detour.io/ready off node n1: get"},
		{"no pods", func(s *agenttest.Server) { s.Refuse["GET /api/v1/pods"] = agenttest.Refusal(403, "Forbidden") }, "find the pods on node n1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := agenttest.NewServer(t)
			newFakeNode(s).put(labels{readyLabel: "true"})
			tt.prepare(s)
			err := <-startUnmark(t, s, time.Millisecond).ended
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for _, node := range []string{"", "a/b"} {
		if err := Unmark(t.Context(), "", node, slog.Default(), nil); err == nil || !strings.Contains(err.Error(), "set NODE_NAME") {
			t.Errorf("node %q: %v", node, err)
		}
	}
}

func TestUnmarkThatIsInterruptedFails(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	newFakeNode(s).put(labels{})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- unmark(ctx, s.Kubeconfig(t), "n1", slog.Default(), (&unmarking{}).serve, time.Hour) }()
	agenttest.Eventually(t, "it has asked for the node", func() bool { return s.Count("GET "+agenttest.NodePath) > 0 })
	stop()
	if err := <-ended; err == nil {
		t.Error("whoever called it would uninstall")
	}
}
