package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func ask(t testing.TB, a *Agent, name, uid string) agentapi.Answer {
	t.Helper()
	answer, err := agentapi.Call(t.Context(), a.conf.Socket, agentapi.Request{Lookup: &pod.ID{Namespace: "shop", Name: name, UID: uid}}, nettest.Patience)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestTheCacheFollowsTheNodesPods(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	other := agenttest.Pod("elsewhere")
	other["spec"].(agenttest.Fields)["nodeName"] = "n2"
	s.Put(agenttest.PodPath("shop", "elsewhere"), other)
	a := newTestAgent(t, s, nil)
	start(t, a)
	has := func(name, uid string) bool {
		_, ok := a.cache.Pod(pod.ID{Namespace: "shop", Name: name, UID: uid})
		return ok
	}
	agenttest.Eventually(t, "the first list", func() bool { return has("a", "uid-a") })
	if has("elsewhere", "uid-elsewhere") || has("a", "") || has("a", "uid-other") {
		t.Error("the cache has a pod of another node, or answers a wrong UID")
	}
	s.Put(agenttest.PodPath("shop", "b"), agenttest.Pod("b"))
	agenttest.Eventually(t, "a pod is added", func() bool { return has("b", "uid-b") })
	anew := agenttest.Pod("b")
	anew["metadata"].(agenttest.Fields)["uid"] = "uid-b2"
	s.Put(agenttest.PodPath("shop", "b"), anew)
	agenttest.Eventually(t, "a pod is replaced", func() bool { return has("b", "uid-b2") && !has("b", "uid-b") })
	s.Put(agenttest.PodPath("shop", "a"), nil)
	agenttest.Eventually(t, "a pod is deleted", func() bool { return !has("a", "uid-a") })

	s.Expire()
	s.Put(agenttest.PodPath("shop", "c"), agenttest.Pod("c"))
	s.Put(agenttest.PodPath("shop", "b"), nil)
	agenttest.Eventually(t, "a watch that has expired goes on", func() bool { return has("c", "uid-c") && !has("b", "uid-b2") })

	s.SetDown(true)
	time.Sleep(50 * time.Millisecond)
	if !has("c", "uid-c") {
		t.Error("the cache is lost with the API server")
	}
	s.SetDown(false)
	s.Put(agenttest.PodPath("shop", "d"), agenttest.Pod("d"))
	agenttest.Eventually(t, "the API server is back", func() bool { return has("d", "uid-d") })
}

func TestAMirrorPodIsFoundByBothOfItsUIDs(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	p := agenttest.Pod("static")
	p["metadata"].(agenttest.Fields)["annotations"] = agenttest.Fields{pod.MirrorAnnotation: "hash"}
	s.Put(agenttest.PodPath("shop", "static"), p)
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "the first list", a.isSynced)
	for _, uid := range []string{"uid-static", "hash"} {
		if _, ok := a.cache.Pod(pod.ID{Namespace: "shop", Name: "static", UID: uid}); !ok {
			t.Errorf("not found by %s", uid)
		}
	}
}

func TestLookupsAreAnsweredFromTheCacheIfTheUIDIsRightAndElseLive(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "the first list", a.isSynced)
	tests := []struct {
		name, pod, uid string
		live           int
	}{
		{"right UID", "a", "uid-a", 0},
		{"no UID", "a", "", 1},
		{"wrong UID", "a", "uid-b", 1},
	}
	for _, tt := range tests {
		before := s.Count("GET " + agenttest.PodPath("shop", "a"))
		answer := ask(t, a, tt.pod, tt.uid)
		facts, err := pod.Parse(answer.Pod)
		if err != nil || facts.UID != "uid-a" || !strings.Contains(string(answer.Config), "6379") || answer.ConfigAbsent != "" {
			t.Errorf("%s: %v, %+v", tt.name, err, answer)
		}
		var config struct{ Kind, APIVersion string }
		if json.Unmarshal(answer.Config, &config) != nil || config.Kind != "MeshConfig" || config.APIVersion != "config.openservicemesh.io/v1alpha2" {
			t.Errorf("%s: configuration %s", tt.name, answer.Config)
		}
		if n := s.Count("GET "+agenttest.PodPath("shop", "a")) - before; n != tt.live {
			t.Errorf("%s: %d live requests, want %d", tt.name, n, tt.live)
		}
	}
	if answer := ask(t, a, "gone", "uid-x"); !answer.NotFound || !strings.Contains(answer.Error, "get pods shop/gone: 404") {
		t.Errorf("a pod that does not exist: %+v", answer)
	}
	if n := s.Count("GET /apis/config.openservicemesh.io?"); n > 1 {
		t.Errorf("discovery ran %d times", n)
	}
}

func TestWithTheAPIServerDownAKnownPodIsAnsweredAndAnotherIsAnError(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "the first list", a.isSynced)
	s.SetDown(true)
	if answer := ask(t, a, "a", "uid-a"); answer.Error != "" || len(answer.Pod) == 0 || len(answer.Config) == 0 {
		t.Errorf("a known pod: %+v", answer)
	}
	if answer := ask(t, a, "b", "uid-b"); answer.NotFound || !strings.Contains(answer.Error, "no answer from") {
		t.Errorf("an unknown pod: %+v", answer)
	}
	if missing := a.Missing(t.Context()); missing != nil {
		t.Errorf("not ready: %q", missing)
	}
}

func TestTheConfigurationIsFollowed(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Served = nil
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	var mu sync.Mutex
	var versions []string
	a := newTestAgent(t, s, func(c *Config) {
		c.ConfigVersion = func(v string) {
			mu.Lock()
			defer mu.Unlock()
			versions = append(versions, v)
		}
	})
	start(t, a)
	absent := func(words string) func() bool {
		return func() bool {
			answer := ask(t, a, "a", "uid-a")
			return answer.Error == "" && answer.Config == nil && strings.Contains(answer.ConfigAbsent, words)
		}
	}
	agenttest.Eventually(t, "the socket", func() bool { return a.socket.Serving() })
	agenttest.Eventually(t, "no version is served", absent("the API server serves no meshconfigs.config.openservicemesh.io in v1alpha2 or v1alpha1"))
	agenttest.Eventually(t, "the node is ready without the CRD", func() bool { return len(a.Missing(t.Context())) == 0 })

	s.Update(func() { s.Served = []string{"v1alpha1"} })
	agenttest.Eventually(t, "the CRD comes", func() bool { return slices.Equal(a.cache.ConfigRef().Versions, []string{"v1alpha1"}) })
	if !absent("MeshConfig osm-system/osm-mesh-config does not exist")() {
		t.Error("absence is not answered")
	}
	s.Update(func() { s.Served = []string{"v1alpha2"} })
	s.Expire()
	s.Put(agenttest.ConfigPath, agenttest.Config())
	agenttest.Eventually(t, "the version is upgraded", func() bool {
		return slices.Equal(a.cache.ConfigRef().Versions, []string{"v1alpha2"}) && strings.Contains(string(a.usual().JSON), "6379")
	})
	other := agenttest.Config()
	other["metadata"].(agenttest.Fields)["name"] = "another"
	s.Put(strings.Replace(agenttest.ConfigPath, "osm-mesh-config", "another", 1), other)
	changed := agenttest.Config()
	changed["spec"] = agenttest.Fields{"traffic": agenttest.Fields{"outboundPortExclusionList": []int{1234}}}
	s.Put(agenttest.ConfigPath, changed)
	agenttest.Eventually(t, "the object is changed", func() bool { return strings.Contains(string(a.usual().JSON), "1234") })
	s.Put(agenttest.ConfigPath, nil)
	agenttest.Eventually(t, "the object is deleted", absent("does not exist"))
	s.Update(func() { s.Served = nil })
	s.Expire()
	agenttest.Eventually(t, "the CRD goes", func() bool { return !a.usual().Known && a.cache.HasConfig() })
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(versions, []string{"v1alpha1", "v1alpha2"}) {
		t.Errorf("versions found: %q", versions)
	}
}

// An API server that can't say what it serves is not one that serves nothing.
func TestAFailedDiscoveryIsNoAnswer(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Refuse["GET /apis/config.openservicemesh.io"] = agenttest.Refusal(403, "Forbidden")
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "it is asked again", func() bool { return s.Count("GET /apis/config.openservicemesh.io") > 1 })
	if a.cache.HasConfig() {
		t.Error("the configuration counts as known")
	}
}

// A mesh without a configuration object is decided by its pods alone: nobody asks for an object, and nothing is missing.
func TestAMeshMayHaveNoConfigurationObject(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	var log strings.Builder
	a := newTestAgent(t, s, func(c *Config) {
		c.Dialect.Config = mesh.ConfigRef{}
		c.Log = slog.New(slog.NewTextHandler(&log, nil))
	})
	stop := start(t, a)
	agenttest.Eventually(t, "the agent is ready", func() bool { return a.isSynced() && len(a.Missing(t.Context())) == 0 })
	if answer := ask(t, a, "a", "uid-a"); answer.Error != "" || len(answer.Pod) == 0 || answer.Config != nil || answer.ConfigAbsent != "" {
		t.Errorf("got %+v", answer)
	}
	agenttest.Eventually(t, "the repair decides", func() bool {
		_, text := get(a, "/metrics")
		return strings.Contains(text, "\ndetour_pods_unprogrammed 1\n")
	})
	stop()
	for _, r := range s.Requests() {
		if strings.HasPrefix(r, "GET") && !strings.HasPrefix(r, "GET /api/v1/pods?") {
			t.Errorf("request %s", r)
		}
	}
	if strings.Contains(log.String(), "config") {
		t.Errorf("the log has %s", log.String())
	}
}

// bigPod is a pod as real ones are: 20 KB of JSON, half of it managedFields.
func bigPod(i int) agenttest.Fields {
	p := agenttest.Pod(fmt.Sprintf("web-%d", i))
	meta := p["metadata"].(agenttest.Fields)
	meta["annotations"] = agenttest.Fields{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 3000), "openservicemesh.io/sidecar-injection": "enabled"}
	meta["managedFields"] = []agenttest.Fields{{"manager": "kubelet", "fieldsV1": agenttest.Fields{"f:status": strings.Repeat("f:", 5000)}}}
	var env []agenttest.Fields
	for j := range 40 {
		env = append(env, agenttest.Fields{"name": fmt.Sprintf("VARIABLE_%d", j), "value": strings.Repeat("v", 60)})
	}
	p["spec"].(agenttest.Fields)["containers"] = []agenttest.Fields{
		{"name": "app", "env": env, "args": []string{strings.Repeat("a", 500)}, "image": "registry/app", "volumeMounts": env},
		{"name": "envoy", "env": env[:10], "args": []string{"--log-level", "error"}, "securityContext": agenttest.Fields{"runAsUser": 1500}},
	}
	return p
}

// childState makes the test binary an agent with this state folder, and the kubeconfig in it.
const childState = "AGENT_TEST_STATE"

// runChild is an agent until it is killed.
func runChild(dir string) int {
	dialect, _ := mesh.Find("osm")
	a, err := New(Config{Node: "n1", Options: decision.Options{Dialect: dialect}, StateDir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig"), MetricsAddr: "127.0.0.1:0"})
	if err == nil {
		err = a.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// The resident memory of a process that is only an agent. There is no limit: the numbers are for the log.
func TestMemoryOfAnAgentWithAHundredPods(t *testing.T) {
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	for i := range 100 {
		s.Put(agenttest.PodPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
	}
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, nil) // for its folder only
	kubeconfig, err := os.ReadFile(a.conf.Kubeconfig)
	if err != nil || os.WriteFile(filepath.Join(a.conf.StateDir, "kubeconfig"), kubeconfig, 0o600) != nil {
		t.Fatal(err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), childState+"="+a.conf.StateDir)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	resident := func() string {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", child.Process.Pid))
		for line := range strings.Lines(string(data)) {
			if strings.HasPrefix(line, "VmRSS:") {
				return strings.Join(strings.Fields(line)[1:], " ")
			}
		}
		return "unknown"
	}
	agenttest.Eventually(t, "it has the pods", func() bool {
		_, err := os.Stat(a.conf.Socket)
		return err == nil && ask(t, a, "web-99", "uid-web-99").Error == ""
	})
	t.Logf("after the start: %s", resident())
	for i := range 100 {
		for range 10 {
			ask(t, a, fmt.Sprintf("web-%d", i), fmt.Sprintf("uid-web-%d", i))
		}
	}
	t.Logf("after 1000 lookups: %s", resident())
	for range 10 {
		for i := range 100 {
			s.Put(agenttest.PodPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("after 1000 changes of pods: %s", resident())
}

// There is no limit on the heap: the numbers are for the log.
func TestMemoryOfTheCacheWithAHundredPods(t *testing.T) {
	s := agenttest.NewServer(t)
	for i := range 100 {
		s.Put(agenttest.PodPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
	}
	one, _ := json.Marshal(bigPod(0))
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "all pods are there", func() bool { return len(a.cache.Pods()) == 100 })
	held := 0
	for _, e := range a.cache.Pods() {
		held += len(e.JSON)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("100 pods of %d bytes are held as %d bytes each; heap of agent and test server together %d KiB", len(one), held/100, m.HeapAlloc>>10)
	if held/100 > len(one)/5 {
		t.Errorf("a pod is held as %d bytes of %d: what is it that isn't trimmed?", held/100, len(one))
	}
}
