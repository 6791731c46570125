package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
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
	s := newAPIServer(t)
	s.put(podPath("shop", "a"), testPod("a"))
	other := testPod("elsewhere")
	other["spec"].(fields)["nodeName"] = "n2"
	s.put(podPath("shop", "elsewhere"), other)
	a := newTestAgent(t, s, nil)
	start(t, a)
	has := func(name, uid string) bool {
		_, ok := a.pods.find("shop", name, uid)
		return ok
	}
	eventually(t, "the first list", func() bool { return has("a", "uid-a") })
	if has("elsewhere", "uid-elsewhere") || has("a", "") || has("a", "uid-other") {
		t.Error("the cache has a pod of another node, or answers a wrong UID")
	}
	s.put(podPath("shop", "b"), testPod("b"))
	eventually(t, "a pod is added", func() bool { return has("b", "uid-b") })
	anew := testPod("b")
	anew["metadata"].(fields)["uid"] = "uid-b2"
	s.put(podPath("shop", "b"), anew)
	eventually(t, "a pod is replaced", func() bool { return has("b", "uid-b2") && !has("b", "uid-b") })
	s.put(podPath("shop", "a"), nil)
	eventually(t, "a pod is deleted", func() bool { return !has("a", "uid-a") })

	s.expire()
	s.put(podPath("shop", "c"), testPod("c"))
	s.put(podPath("shop", "b"), nil)
	eventually(t, "a watch that has expired goes on", func() bool { return has("c", "uid-c") && !has("b", "uid-b2") })

	s.setDown(true)
	time.Sleep(50 * time.Millisecond)
	if !has("c", "uid-c") {
		t.Error("the cache is lost with the API server")
	}
	s.setDown(false)
	s.put(podPath("shop", "d"), testPod("d"))
	eventually(t, "the API server is back", func() bool { return has("d", "uid-d") })
}

func TestAMirrorPodIsFoundByBothOfItsUIDs(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	p := testPod("static")
	p["metadata"].(fields)["annotations"] = fields{pod.MirrorAnnotation: "hash"}
	s.put(podPath("shop", "static"), p)
	a := newTestAgent(t, s, nil)
	start(t, a)
	eventually(t, "the first list", a.isSynced)
	for _, uid := range []string{"uid-static", "hash"} {
		if _, ok := a.pods.find("shop", "static", uid); !ok {
			t.Errorf("not found by %s", uid)
		}
	}
}

func TestLookupsAreAnsweredFromTheCacheIfTheUIDIsRightAndElseLive(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.put(podPath("shop", "a"), testPod("a"))
	s.put(configPath, testConfig())
	a := newTestAgent(t, s, nil)
	start(t, a)
	eventually(t, "the first list", a.isSynced)
	tests := []struct {
		name, pod, uid string
		live           int
	}{
		{"right UID", "a", "uid-a", 0},
		{"no UID", "a", "", 1},
		{"wrong UID", "a", "uid-b", 1},
	}
	for _, tt := range tests {
		before := s.count("GET " + podPath("shop", "a"))
		answer := ask(t, a, tt.pod, tt.uid)
		facts, err := pod.Parse(answer.Pod)
		if err != nil || facts.UID != "uid-a" || !strings.Contains(string(answer.Config), "6379") || answer.ConfigAbsent != "" {
			t.Errorf("%s: %v, %+v", tt.name, err, answer)
		}
		var config struct{ Kind, APIVersion string }
		if json.Unmarshal(answer.Config, &config) != nil || config.Kind != "MeshConfig" || config.APIVersion != "config.openservicemesh.io/v1alpha2" {
			t.Errorf("%s: configuration %s", tt.name, answer.Config)
		}
		if n := s.count("GET "+podPath("shop", "a")) - before; n != tt.live {
			t.Errorf("%s: %d live requests, want %d", tt.name, n, tt.live)
		}
	}
	if answer := ask(t, a, "gone", "uid-x"); !answer.NotFound || !strings.Contains(answer.Error, "get pods shop/gone: 404") {
		t.Errorf("a pod that does not exist: %+v", answer)
	}
	if n := s.count("GET /apis/config.openservicemesh.io?"); n > 1 {
		t.Errorf("discovery ran %d times", n)
	}
}

func TestWithTheAPIServerDownAKnownPodIsAnsweredAndAnotherIsAnError(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.put(podPath("shop", "a"), testPod("a"))
	s.put(configPath, testConfig())
	a := newTestAgent(t, s, nil)
	start(t, a)
	eventually(t, "the first list", a.isSynced)
	s.setDown(true)
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
	s := newAPIServer(t)
	s.served = nil
	s.put(podPath("shop", "a"), testPod("a"))
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
	eventually(t, "the socket", func() bool { return a.socket.at(a.conf.Socket) })
	eventually(t, "no version is served", absent("the API server serves no meshconfigs.config.openservicemesh.io in v1alpha2 or v1alpha1"))
	eventually(t, "the node is ready without the CRD", func() bool { return len(a.Missing(t.Context())) == 0 })

	s.update(func() { s.served = []string{"v1alpha1"} })
	eventually(t, "the CRD comes", func() bool { return a.config.servedVersion() == "v1alpha1" && a.config.get().known })
	if !absent("MeshConfig osm-system/osm-mesh-config does not exist")() {
		t.Error("absence is not answered")
	}
	s.update(func() { s.served = []string{"v1alpha2"} })
	s.expire()
	s.put(configPath, testConfig())
	eventually(t, "the version is upgraded", func() bool {
		return a.config.servedVersion() == "v1alpha2" && strings.Contains(string(a.config.get().json), "6379")
	})
	other := testConfig()
	other["metadata"].(fields)["name"] = "another"
	s.put(strings.Replace(configPath, "osm-mesh-config", "another", 1), other)
	changed := testConfig()
	changed["spec"] = fields{"traffic": fields{"outboundPortExclusionList": []int{1234}}}
	s.put(configPath, changed)
	eventually(t, "the object is changed", func() bool { return strings.Contains(string(a.config.get().json), "1234") })
	s.put(configPath, nil)
	eventually(t, "the object is deleted", absent("does not exist"))
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(versions, []string{"v1alpha1", "v1alpha2"}) {
		t.Errorf("versions found: %q", versions)
	}
}

// What the cache drops must not count: every scenario is decided alike from the pod as served and as cached.
func TestTheTrimmedPodIsDecidedLikeTheWhole(t *testing.T) {
	t.Parallel()
	cases := testcase.Load(t, "../..")
	for _, c := range cases {
		dialect, ok := mesh.Find(c.Mesh)
		if !ok {
			t.Fatalf("%s: no dialect", c.Name)
		}
		whole, err := yaml.YAMLToJSON([]byte(c.Section("pod.yaml")))
		if err != nil {
			t.Fatal(err)
		}
		var config []byte
		for _, section := range []string{"meshconfig.yaml"} {
			if text := c.Section(section); text != "" {
				if config, err = yaml.YAMLToJSON([]byte(text)); err != nil {
					t.Fatal(err)
				}
			}
		}
		p, err := newPodCache(dialect, nil).decode(whole)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		decide := func(data []byte) (any, string) {
			facts, err := pod.Parse(data)
			if err != nil {
				return nil, err.Error()
			}
			d, err := dialect.Decide(mesh.Input{Pod: facts, Config: config, Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3")}})
			return d, fmt.Sprint(err)
		}
		want, wantErr := decide(whole)
		got, gotErr := decide(p.(*podObject).entry.json)
		if !reflect.DeepEqual(got, want) || gotErr != wantErr {
			t.Errorf("%s: the trimmed pod gives\n%+v %s, the whole\n%+v %s", c.Name, got, gotErr, want, wantErr)
		}
	}
}

// bigPod is a pod as real ones are: 20 KB of JSON, half of it managedFields.
func bigPod(i int) fields {
	p := testPod(fmt.Sprintf("web-%d", i))
	meta := p["metadata"].(fields)
	meta["annotations"] = fields{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 3000), "openservicemesh.io/sidecar-injection": "enabled"}
	meta["managedFields"] = []fields{{"manager": "kubelet", "fieldsV1": fields{"f:status": strings.Repeat("f:", 5000)}}}
	var env []fields
	for j := range 40 {
		env = append(env, fields{"name": fmt.Sprintf("VARIABLE_%d", j), "value": strings.Repeat("v", 60)})
	}
	p["spec"].(fields)["containers"] = []fields{
		{"name": "app", "env": env, "args": []string{strings.Repeat("a", 500)}, "image": "registry/app", "volumeMounts": env},
		{"name": "envoy", "env": env[:10], "args": []string{"--log-level", "error"}, "securityContext": fields{"runAsUser": 1500}},
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

// The resident memory of a process that is an agent and nothing else. No limits: the numbers are for the note.
func TestMemoryOfAnAgentWithAHundredPods(t *testing.T) {
	nettest.RequireNetns(t) // root, whom alone the socket serves
	s := newAPIServer(t)
	for i := range 100 {
		s.put(podPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
	}
	s.put(configPath, testConfig())
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
	eventually(t, "it has the pods", func() bool {
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
			s.put(podPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("after 1000 changes of pods: %s", resident())
}

// No limit on the heap: the numbers are for the note.
func TestMemoryOfTheCacheWithAHundredPods(t *testing.T) {
	s := newAPIServer(t)
	for i := range 100 {
		s.put(podPath("shop", fmt.Sprintf("web-%d", i)), bigPod(i))
	}
	one, _ := json.Marshal(bigPod(0))
	a := newTestAgent(t, s, nil)
	start(t, a)
	eventually(t, "all pods are there", func() bool { return len(a.pods.list()) == 100 })
	held := 0
	for _, e := range a.pods.list() {
		held += len(e.json)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("100 pods of %d bytes are held as %d bytes each; heap of agent and test server together %d KiB", len(one), held/100, m.HeapAlloc>>10)
	if held/100 > len(one)/5 {
		t.Errorf("a pod is held as %d bytes of %d: what is it that isn't trimmed?", held/100, len(one))
	}
}
