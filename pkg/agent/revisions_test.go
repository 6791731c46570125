package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func configMapPath(name string) string {
	return "/api/v1/namespaces/istio-system/configmaps/" + name
}

func configMap(name string, port int) agenttest.Fields {
	return agenttest.Fields{
		"kind": "ConfigMap", "apiVersion": "v1", "metadata": agenttest.Fields{"namespace": "istio-system", "name": name},
		"data": agenttest.Fields{"mesh": fmt.Sprintf("proxyListenPort: %d", port)},
	}
}

// podOf is a pod of istio's that the revision's control plane has injected.
func podOf(name, revision string) agenttest.Fields {
	p := agenttest.Pod(name)
	p["metadata"].(agenttest.Fields)["annotations"] = agenttest.Fields{"sidecar.istio.io/status": "{}", "istio.io/rev": revision}
	p["spec"] = agenttest.Fields{"nodeName": "n1", "containers": []agenttest.Fields{{"name": "app"}, {"name": "istio-proxy"}}}
	return p
}

func withIstio(c *Config) { c.Dialect, _ = mesh.Find("istio") }

// newIstioAgent makes an agent of a mesh with the usual configuration, which does not run yet.
func newIstioAgent(t testing.TB) (*agenttest.Server, *Agent) {
	t.Helper()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(configMapPath("istio"), configMap("istio", 16001))
	return s, newTestAgent(t, s, withIstio)
}

// gets counts the live requests for pods and configurations.
func gets(s *agenttest.Server) int {
	return s.Count("GET /api/v1/namespaces/shop/pods/") + s.Count("GET "+configMapPath(""))
}

// fromMemory reports whether the lookup is answered without a live request, with these words as the configuration.
func fromMemory(t testing.TB, s *agenttest.Server, a *Agent, name, words string) func() bool {
	return func() bool {
		before := gets(s)
		answer := ask(t, a, name, "uid-"+name)
		return answer.Error == "" && strings.Contains(string(answer.Config)+answer.ConfigAbsent, words) && gets(s) == before
	}
}

func TestTheConfigurationOfEachRevisionOnTheNodeIsCached(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.Put(configMapPath("istio-canary"), configMap("istio-canary", 16002))
	s.Put(configMapPath("istio-elsewhere"), configMap("istio-elsewhere", 16003))
	for name, revision := range map[string]string{"usual": "default", "first": "canary", "lost": "gone"} {
		s.Put(agenttest.PodPath("shop", name), podOf(name, revision))
	}
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	agenttest.Eventually(t, "the usual configuration", fromMemory(t, s, a, "usual", "16001"))
	agenttest.Eventually(t, "the revision's", fromMemory(t, s, a, "first", "16002"))
	agenttest.Eventually(t, "that there is none", fromMemory(t, s, a, "lost", "ConfigMap istio-system/istio-gone does not exist"))
	if n := s.Count("GET /api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3Distio-elsewhere"); n != 0 {
		t.Error("a revision that no pod of the node has is followed")
	}
	s.Put(configMapPath("istio-canary"), configMap("istio-canary", 16012))
	agenttest.Eventually(t, "a change", fromMemory(t, s, a, "first", "16012"))

	s.Put(agenttest.PodPath("shop", "later"), podOf("later", "elsewhere"))
	agenttest.Eventually(t, "a new pod's revision", fromMemory(t, s, a, "later", "16003"))
	s.SetDown(true)
	for name, words := range map[string]string{"usual": "16001", "first": "16012", "later": "16003"} {
		if !fromMemory(t, s, a, name, words)() {
			t.Errorf("with the API server down pod %s has no answer", name)
		}
	}
	s.SetDown(false)
	s.Put(agenttest.PodPath("shop", "later"), nil)
	agenttest.Eventually(t, "what no pod needs is dropped", func() bool {
		return !a.cache.ConfigOf(nodepod.Pod{Config: "istio-elsewhere"}).Known
	})
	if !fromMemory(t, s, a, "first", "16012")() {
		t.Error("another revision is lost with it")
	}
	lists := func(name string) int {
		return s.Count("GET /api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3D" + name)
	}
	needed, dropped := lists("istio-canary"), lists("istio-elsewhere")
	agenttest.Eventually(t, "the other is still followed", func() bool {
		s.Expire() // who watches lists anew
		return lists("istio-canary") > needed
	})
	time.Sleep(100 * time.Millisecond)
	if lists("istio-elsewhere") != dropped {
		t.Error("what no pod needs is still followed")
	}
}

func TestReadinessDoesNotDependOnRevisions(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.Put(agenttest.PodPath("shop", "first"), podOf("first", "canary"))
	for _, request := range []string{configMapPath("istio-canary"), "/api/v1/namespaces/istio-system/configmaps metadata.name=istio-canary"} {
		s.Refuse["GET "+request] = agenttest.Refusal(403, "Forbidden")
	}
	a.timing.probe = time.Hour
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	before := gets(s)
	if missing := a.Missing(t.Context()); len(missing) > 0 || gets(s) != before {
		t.Errorf("missing %q, %d requests", missing, gets(s)-before)
	}
	if answer := ask(t, a, "first", "uid-first"); !strings.Contains(answer.Error, "get configmaps istio-system/istio-canary: 403") {
		t.Errorf("got %+v", answer)
	}
}

// Pods must not make the agent follow as many objects as there are pods.
func TestPodsThatNameManyRevisionsAreLookedUpLive(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	for i := range 100 {
		name := fmt.Sprintf("many-%d", i)
		s.Put(agenttest.PodPath("shop", name), podOf(name, fmt.Sprintf("a%d", i)))
	}
	for _, name := range []string{"one", "two"} { // of a name that comes after all the others
		s.Put(agenttest.PodPath("shop", name), podOf(name, "zz"))
	}
	s.Put(configMapPath("istio-zz"), configMap("istio-zz", 16002))
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	agenttest.Eventually(t, "the revision of most pods", fromMemory(t, s, a, "one", "16002"))
	cached, live := 0, 0
	for i := range 100 {
		name, before := fmt.Sprintf("many-%d", i), gets(s)
		if answer := ask(t, a, name, "uid-"+name); answer.ConfigAbsent != fmt.Sprintf("ConfigMap istio-system/istio-a%d does not exist", i) {
			t.Errorf("%s: %+v", name, answer)
		}
		if gets(s) == before {
			cached++
		} else {
			live++
		}
	}
	if cached > cache.MaxRevisions-1 || live < 100-cache.MaxRevisions {
		t.Errorf("%d are answered from memory, %d live", cached, live)
	}
}

func TestUnprogrammedPodsAreFoundByTheirRevisionsConfiguration(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.Put(configMapPath("istio-canary"), configMap("istio-canary", 99999)) // no port
	for name, revision := range map[string]string{"usual": "default", "first": "canary"} {
		s.Put(agenttest.PodPath("shop", name), podOf(name, revision))
	}
	lookOnce(a)
	start(t, a)
	agenttest.Eventually(t, "both are found", func() bool { return a.isSynced() && len(found(t, a)) == 2 })
	all, err := a.repairer.Find(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if refused := f.Refused != ""; refused != (f.Pod.Name == "first") {
			t.Errorf("pod %s: refused is %q", f.Pod, f.Refused)
		}
	}
}

// The cached pod must name the same configuration as the whole one.
func TestTheTrimmedPodHasTheConfigurationOfTheWhole(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.Put(agenttest.PodPath("shop", "first"), podOf("first", "canary"))
	start(t, a)
	agenttest.Eventually(t, "the pod", a.isSynced)
	e, ok := a.cache.Pod(pod.ID{Namespace: "shop", Name: "first", UID: "uid-first"})
	facts, err := pod.Parse(e.JSON)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := a.conf.Dialect.ConfigFor(facts.Annotations, facts.Labels).Name; got != "istio-canary" || e.Config != got {
		t.Errorf("the cache has %s, the pod says %s", e.Config, got)
	}
}
