package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func configMapPath(name string) string {
	return "/api/v1/namespaces/istio-system/configmaps/" + name
}

func configMap(name string, port int) fields {
	return fields{
		"kind": "ConfigMap", "apiVersion": "v1", "metadata": fields{"namespace": "istio-system", "name": name},
		"data": fields{"mesh": fmt.Sprintf("proxyListenPort: %d", port)},
	}
}

// podOf is a pod of istio's that the revision's control plane has injected.
func podOf(name, revision string) fields {
	p := testPod(name)
	p["metadata"].(fields)["annotations"] = fields{"sidecar.istio.io/status": "{}", "istio.io/rev": revision}
	p["spec"] = fields{"nodeName": "n1", "containers": []fields{{"name": "app"}, {"name": "istio-proxy"}}}
	return p
}

func withIstio(c *Config) { c.Dialect, _ = mesh.Find("istio") }

// newIstioAgent makes an agent of a mesh with the usual configuration, which does not run yet.
func newIstioAgent(t testing.TB) (*apiServer, *Agent) {
	t.Helper()
	nettest.RequireNetns(t) // root, whom alone the socket serves
	s := newAPIServer(t)
	s.put(configMapPath("istio"), configMap("istio", 16001))
	return s, newTestAgent(t, s, withIstio)
}

// gets counts the live requests for pods and configurations.
func (s *apiServer) gets() int {
	return s.count("GET /api/v1/namespaces/shop/pods/") + s.count("GET "+configMapPath(""))
}

// fromMemory reports whether the lookup is answered without a live request, with these words as the configuration.
func fromMemory(t testing.TB, s *apiServer, a *Agent, name, words string) func() bool {
	return func() bool {
		before := s.gets()
		answer := ask(t, a, name, "uid-"+name)
		return answer.Error == "" && strings.Contains(string(answer.Config)+answer.ConfigAbsent, words) && s.gets() == before
	}
}

func TestTheConfigurationOfEachRevisionOnTheNodeIsCached(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.put(configMapPath("istio-canary"), configMap("istio-canary", 16002))
	s.put(configMapPath("istio-elsewhere"), configMap("istio-elsewhere", 16003))
	for name, revision := range map[string]string{"usual": "default", "first": "canary", "lost": "gone"} {
		s.put(podPath("shop", name), podOf(name, revision))
	}
	start(t, a)
	eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.at(a.conf.Socket) })
	eventually(t, "the usual configuration", fromMemory(t, s, a, "usual", "16001"))
	eventually(t, "the revision's", fromMemory(t, s, a, "first", "16002"))
	eventually(t, "that there is none", fromMemory(t, s, a, "lost", "ConfigMap istio-system/istio-gone does not exist"))
	if n := s.count("GET /api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3Distio-elsewhere"); n != 0 {
		t.Error("a revision that no pod of the node has is followed")
	}
	s.put(configMapPath("istio-canary"), configMap("istio-canary", 16012))
	eventually(t, "a change", fromMemory(t, s, a, "first", "16012"))

	s.put(podPath("shop", "later"), podOf("later", "elsewhere"))
	eventually(t, "a new pod's revision", fromMemory(t, s, a, "later", "16003"))
	s.setDown(true)
	for name, words := range map[string]string{"usual": "16001", "first": "16012", "later": "16003"} {
		if !fromMemory(t, s, a, name, words)() {
			t.Errorf("with the API server down pod %s has no answer", name)
		}
	}
	s.setDown(false)
	s.put(podPath("shop", "later"), nil)
	eventually(t, "what no pod needs is dropped", func() bool {
		a.revisions.mu.Lock()
		defer a.revisions.mu.Unlock()
		return len(a.revisions.caches) == 2
	})
	if !fromMemory(t, s, a, "first", "16012")() {
		t.Error("another revision is lost with it")
	}
	lists := func(name string) int {
		return s.count("GET /api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3D" + name)
	}
	needed, dropped := lists("istio-canary"), lists("istio-elsewhere")
	eventually(t, "the other is still followed", func() bool {
		s.expire() // who watches lists anew
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
	s.put(podPath("shop", "first"), podOf("first", "canary"))
	for _, request := range []string{configMapPath("istio-canary"), "/api/v1/namespaces/istio-system/configmaps metadata.name=istio-canary"} {
		s.refuse["GET "+request] = refusal(403, "Forbidden")
	}
	a.timing.probe = time.Hour
	start(t, a)
	eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.at(a.conf.Socket) })
	before := s.gets()
	if missing := a.Missing(t.Context()); len(missing) > 0 || s.gets() != before {
		t.Errorf("missing %q, %d requests", missing, s.gets()-before)
	}
	if answer := ask(t, a, "first", "uid-first"); !strings.Contains(answer.Error, "get configmaps istio-system/istio-canary: 403") {
		t.Errorf("got %+v", answer)
	}
}

// What a pod says of itself must not make the agent follow as many objects as there are pods.
func TestPodsThatNameManyRevisionsAreLookedUpLive(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	for i := range 100 {
		name := fmt.Sprintf("many-%d", i)
		s.put(podPath("shop", name), podOf(name, fmt.Sprintf("a%d", i)))
	}
	for _, name := range []string{"one", "two"} { // of a name that comes after all the others
		s.put(podPath("shop", name), podOf(name, "zz"))
	}
	s.put(configMapPath("istio-zz"), configMap("istio-zz", 16002))
	start(t, a)
	eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.at(a.conf.Socket) })
	eventually(t, "the revision of most pods", fromMemory(t, s, a, "one", "16002"))
	cached, live := 0, 0
	for i := range 100 {
		name, before := fmt.Sprintf("many-%d", i), s.gets()
		if answer := ask(t, a, name, "uid-"+name); answer.ConfigAbsent != fmt.Sprintf("ConfigMap istio-system/istio-a%d does not exist", i) {
			t.Errorf("%s: %+v", name, answer)
		}
		if s.gets() == before {
			cached++
		} else {
			live++
		}
	}
	if cached > mostRevisions-1 || live < 100-mostRevisions {
		t.Errorf("%d are answered from memory, %d live", cached, live)
	}
}

func TestUnprogrammedPodsAreFoundByTheirRevisionsConfiguration(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.put(configMapPath("istio-canary"), configMap("istio-canary", 99999)) // no port
	for name, revision := range map[string]string{"usual": "default", "first": "canary"} {
		s.put(podPath("shop", name), podOf(name, revision))
	}
	lookOnce(a)
	start(t, a)
	eventually(t, "both are found", func() bool { return a.isSynced() && len(found(t, a)) == 2 })
	all, err := a.unprogrammed(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if refused := f.refused != ""; refused != (f.pod.name == "first") {
			t.Errorf("pod %s: refused is %q", f.pod, f.refused)
		}
	}
}

// What the cache drops of a pod must not be what says whose configuration it has.
func TestTheTrimmedPodHasTheConfigurationOfTheWhole(t *testing.T) {
	t.Parallel()
	s, a := newIstioAgent(t)
	s.put(podPath("shop", "first"), podOf("first", "canary"))
	start(t, a)
	eventually(t, "the pod", a.isSynced)
	e, ok := a.pods.find("shop", "first", "uid-first")
	facts, err := pod.Parse(e.json)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	if got := a.conf.Dialect.ConfigFor(facts.Annotations, facts.Labels).Name; got != "istio-canary" || e.config != got {
		t.Errorf("the cache has %s, the pod says %s", e.config, got)
	}
}
