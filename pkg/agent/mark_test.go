package agent

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

var (
	ours     = agenttest.Fields{"key": "detour.io/not-ready", "effect": "NoSchedule"}
	evicting = agenttest.Fields{"key": "detour.io/not-ready", "effect": "NoExecute"}
	others   = agenttest.Fields{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
)

type labels = map[string]string

// fakeNode is node n1 on a server, which the agent's patches change.
type fakeNode struct {
	s       *agenttest.Server
	refused atomic.Pointer[http.HandlerFunc] // answers the next patch

	mu     sync.Mutex
	labels labels
	taints []agenttest.Fields
}

func newFakeNode(s *agenttest.Server) *fakeNode {
	n := &fakeNode{s: s}
	s.Refuse["PATCH "+agenttest.NodePath] = n.patch
	return n
}

func (n *fakeNode) put(l labels, taints ...agenttest.Fields) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.labels, n.taints = maps.Clone(l), taints
	n.show()
}

func (n *fakeNode) show() {
	n.s.Put(agenttest.NodePath, agenttest.Fields{"kind": "Node", "apiVersion": "v1",
		"metadata": agenttest.Fields{"name": "n1", "labels": maps.Clone(n.labels)}, "spec": agenttest.Fields{"taints": slices.Clone(n.taints)}})
}

func (n *fakeNode) patch(w http.ResponseWriter, r *http.Request) {
	if refuse := n.refused.Swap(nil); refuse != nil {
		(*refuse)(w, r)
		return
	}
	n.s.Accept(w, r)
	n.mu.Lock()
	defer n.mu.Unlock()
	written := n.s.Written("PATCH", agenttest.NodePath)
	switch p := written[len(written)-1]; p.ContentType {
	case "application/merge-patch+json":
		for key, value := range p.Body["metadata"].(agenttest.Fields)["labels"].(agenttest.Fields) {
			if delete(n.labels, key); value != nil {
				n.labels[key] = value.(string)
			}
		}
	case "application/json-patch+json":
		at := int(p.Patch[1]["path"].(string)[len("/spec/taints/")] - '0')
		n.taints = slices.Delete(slices.Clone(n.taints), at, at+1)
	}
	n.show()
}

func (n *fakeNode) is(l labels, taints ...agenttest.Fields) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Equal(n.labels, l) && reflect.DeepEqual(slices.Clone(n.taints), slices.Clone(taints))
}

func (n *fakeNode) patches() int { return len(n.s.Written("PATCH", agenttest.NodePath)) }

// markedNode is a node with an agent that marks it. installed is what the agent hears of the installation.
func markedNode(t *testing.T, l labels, taints ...agenttest.Fields) (n *fakeNode, a *Agent, installed *atomic.Bool) {
	t.Helper()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(agenttest.ConfigPath, agenttest.Config())
	n, installed = newFakeNode(s), &atomic.Bool{}
	n.put(l, taints...)
	a = newTestAgent(t, s, func(c *Config) {
		c.MarkNode = true
		c.Installed = func() (bool, string) { return installed.Load(), "no entry" }
	})
	return n, a, installed
}

const readyLabel = pod.ReadyLabel

// looks is longer than some looks at what is installed.
const looks = 300 * time.Millisecond

func TestANodeIsMarkedOnceItIsReady(t *testing.T) {
	t.Parallel()
	other := labels{"zone": "a"}
	n, a, installed := markedNode(t, other, others, evicting, ours)
	conflict := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // somebody was faster
		n.put(n.labels, ours, others)
		agenttest.Refusal(422, "Invalid")(w, r)
	})
	start(t, a)
	agenttest.Eventually(t, "the cache is complete", a.isSynced)
	time.Sleep(looks)
	if n.patches() != 0 {
		t.Fatal("the node was marked before it was ready")
	}
	n.refused.Store(&conflict)
	installed.Store(true)
	marked := labels{"zone": "a", readyLabel: "true"}
	agenttest.Eventually(t, "the node is marked", func() bool { return n.is(marked, others) })
	agenttest.Eventually(t, "the metric is 1", func() bool { _, text := get(a, "/metrics"); return strings.Contains(text, "\ndetour_node_marked 1\n") })
	n.put(other, evicting, ours, others) // it was made anew
	agenttest.Eventually(t, "the node is marked again", func() bool { return n.is(marked, evicting, others) })
	n.put(labels{readyLabel: "false"})
	agenttest.Eventually(t, "another value is corrected", func() bool { return n.is(labels{readyLabel: "true"}) })
	time.Sleep(looks)
	if got := n.patches(); got != 5 {
		t.Errorf("%d patches, want one for each label and taint", got)
	}
}

func TestATaintsPatchOnlyWorksOnTheTaintThatWasRead(t *testing.T) {
	t.Parallel()
	n, a, installed := markedNode(t, labels{readyLabel: "true"}, others, ours)
	installed.Store(true)
	start(t, a)
	agenttest.Eventually(t, "the taint goes", func() bool { return n.patches() > 0 })
	got, _ := json.Marshal(n.s.Written("PATCH", agenttest.NodePath)[0].Patch)
	want := `[{"op":"test","path":"/spec/taints/1","value":{"effect":"NoSchedule","key":"detour.io/not-ready"}},{"op":"remove","path":"/spec/taints/1"}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Its Node is as the one before it left it, with the label.
func TestANodeThatWasSetUpAnewLosesTheLabelUntilItIsReady(t *testing.T) {
	t.Parallel()
	n, a, installed := markedNode(t, labels{readyLabel: "true", "zone": "a"}, others)
	start(t, a)
	agenttest.Eventually(t, "the label goes", func() bool { return n.is(labels{"zone": "a"}, others) })
	agenttest.Eventually(t, "the metric is 0", func() bool { _, text := get(a, "/metrics"); return strings.Contains(text, "\ndetour_node_marked 0\n") })
	n.put(labels{readyLabel: "true"}) // whoever does this
	agenttest.Eventually(t, "the label goes again", func() bool { return n.is(labels{}) })
	installed.Store(true)
	agenttest.Eventually(t, "the label is back", func() bool { return n.is(labels{readyLabel: "true"}) })
	installed.Store(false)
	agenttest.Eventually(t, "another installer keeps the entry out", func() bool { return n.is(labels{}) })
}

// Where the plugin is called, pods wait: the label has no reason to go, and a kubelet that restarts without it ends pods.
func TestTheLabelStaysAsLongAsThePluginIsCalled(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		begin  bool // with detour installed and the API server there
		become func(*fakeNode, *atomic.Bool)
	}{
		{"the first look at the host comes late", false, func(n *fakeNode, installed *atomic.Bool) {
			n.s.SetDown(false)
			time.Sleep(20 * time.Millisecond)
			installed.Store(true)
		}},
		{"nothing can be looked up", false, func(n *fakeNode, installed *atomic.Bool) {
			refuseLookups(n.s)
			installed.Store(true)
			n.s.SetDown(false)
		}},
		{"the entry is gone for a moment", true, func(_ *fakeNode, installed *atomic.Bool) {
			installed.Store(false)
			time.Sleep(20 * time.Millisecond)
			installed.Store(true)
		}},
		{"the API server is away", true, func(n *fakeNode, _ *atomic.Bool) {
			n.s.SetDown(true)
			time.Sleep(looks)
			n.s.SetDown(false)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n, a, installed := markedNode(t, labels{readyLabel: "true"})
			a.timing.check = looks // between two looks of the agent there is time for the test
			n.s.SetDown(!tt.begin)
			installed.Store(tt.begin)
			stop := start(t, a)
			if tt.begin {
				agenttest.Eventually(t, "the node is ready", func() bool { return len(a.Missing(t.Context())) == 0 })
			}
			tt.become(n, installed)
			time.Sleep(4 * looks)
			stop()
			if !n.is(labels{readyLabel: "true"}) || n.patches() != 0 {
				t.Errorf("after %d patches the labels are %v", n.patches(), n.labels)
			}
		})
	}
}

func TestAMarkThatFailsIsTriedAgainSoon(t *testing.T) {
	t.Parallel()
	n, a, installed := markedNode(t, labels{})
	a.timing.node = 24 * time.Hour
	refusal := agenttest.Refusal(403, "Forbidden")
	n.refused.Store(&refusal)
	installed.Store(true)
	start(t, a)
	agenttest.Eventually(t, "the node is marked", func() bool { return n.is(labels{readyLabel: "true"}) })
	installed.Store(false)
	n.refused.Store(&refusal)
	agenttest.Eventually(t, "the label goes", func() bool { return n.is(labels{}) })
}

func refuseLookups(s *agenttest.Server) {
	s.Refuse["GET /api/v1/pods"] = agenttest.Refusal(403, "Forbidden")
	s.Refuse["GET /api/v1/namespaces/osm-system/pods/detour-status"] = agenttest.Refusal(403, "Forbidden")
}

func TestANodeWithDetourThatServesNobodyIsNotMarked(t *testing.T) {
	t.Parallel()
	n, a, installed := markedNode(t, labels{}, ours)
	refuseLookups(n.s)
	installed.Store(true)
	start(t, a)
	agenttest.Eventually(t, "the agent listens", func() bool { return a.socket.Serving() })
	time.Sleep(looks)
	if n.patches() != 0 {
		t.Errorf("the node has %v, %v", n.labels, n.taints)
	}
}

func TestANodeStaysAsItIsUnlessAsked(t *testing.T) {
	t.Parallel()
	s, _ := startServed(t, nil)
	newFakeNode(s).put(nil, ours)
	time.Sleep(100 * time.Millisecond)
	if n := s.Count("GET /api/v1/nodes"); n != 0 {
		t.Errorf("the node was asked for %d times", n)
	}
}
