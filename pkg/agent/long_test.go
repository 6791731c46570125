package agent

import (
	"net/http"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/pod"
)

// longPod is a pod of which even what a mesh reads is longer than what is kept.
func longPod(name string) agenttest.Fields {
	p := agenttest.Pod(name)
	p["metadata"].(agenttest.Fields)["annotations"] = agenttest.Fields{"openservicemesh.io/outbound-port-exclusion-list": strings.Repeat("6379, ", cache.MaxKept/5) + "6379"}
	return p
}

func TestALongPodIsAskedForAndNotKept(t *testing.T) {
	t.Parallel()
	s, a := startServed(t, func(c *Config) { c.ExcludeNamespaces = []string{"shop"} })
	wordy := agenttest.Pod("wordy")
	wordy["spec"].(agenttest.Fields)["containers"] = []agenttest.Fields{
		{"name": "app", "env": []agenttest.Fields{{"name": "LONG", "value": strings.Repeat("x", 2*cache.MaxKept)}}, "args": []string{strings.Repeat("x", 2*cache.MaxKept)}}, {"name": "envoy"},
	}
	s.Put(agenttest.PodPath("shop", "wordy"), wordy)
	s.Put(agenttest.PodPath("shop", "long"), longPod("long"))
	agenttest.Eventually(t, "the pods are there", func() bool { return len(a.cache.Pods()) == 3 })
	for name, live := range map[string]int{"a": 0, "wordy": 0, "long": 1} {
		answer := ask(t, a, name, "uid-"+name)
		p, err := pod.Parse(answer.Pod)
		if err != nil || p.Name != name || len(answer.Config) == 0 {
			t.Errorf("%s: %v %.200s", name, err, answer.Pod)
		}
		if n := s.Count("GET " + agenttest.PodPath("shop", name)); n != live {
			t.Errorf("%s was asked for %d times, want %d", name, n, live)
		}
	}
	if answer := ask(t, a, "wordy", ""); len(answer.Pod) == 0 || len(answer.Pod) > 1000 { // without a UID the cache can't be trusted
		t.Errorf("a live answer has %d bytes: %.200s", len(answer.Pod), answer.Pod)
	}
	kept := 0
	for _, e := range a.cache.Pods() {
		kept += len(e.JSON)
	}
	if kept > 2000 {
		t.Errorf("%d bytes are kept of three pods", kept)
	}
}

// A long pod is found, and one that can't be looked up does not hide others.
func TestALongPodThatRunsWithoutRedirectionIsFound(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "long"), longPod("long"))
	unknown := longPod("unknown")
	s.Put(agenttest.PodPath("shop", "unknown"), unknown)
	s.Refuse["GET "+agenttest.PodPath("shop", "unknown")] = agenttest.Refusal(http.StatusForbidden, "Forbidden")
	s.Put(agenttest.PodPath("shop", "short"), agenttest.Pod("short"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := lookOnce(newTestAgent(t, s, nil))
	start(t, a)
	agenttest.Eventually(t, "the first list", a.isSynced)
	if got := found(t, a); strings.Join(got, " ") != "long short" {
		t.Errorf("found %q", got)
	}
}
