//go:build kubeapi

package apitest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// agentRules are the rights that the agent needs: for the cache and live lookups, the configuration, Events, --repair=evict
// and the node's label and taint.
const agentRules = `
- {apiGroups: [""], resources: [pods], verbs: [get, list, watch]}
- {apiGroups: [config.openservicemesh.io], resources: [meshconfigs], resourceNames: [osm-mesh-config], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [events], verbs: [create, patch]}
- {apiGroups: [""], resources: [pods/eviction], verbs: [create]}
- {apiGroups: [""], resources: [nodes], verbs: [get, patch]}
`

// agentScene is a node with its agent: namespaces for its pods and its mesh, and an account of its own.
type agentScene struct {
	t                *testing.T
	pods, mesh, node string
	conf             agent.Config
	agent            *agent.Agent
	logs             logBuffer
}

func newAgentScene(t *testing.T) *agentScene {
	t.Helper()
	s := newAgentSceneWithoutRights(t)
	s.create(fmt.Sprintf("{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: %s}, rules: %s}", s.pods, flow(t, agentRules)))
	s.create(fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}
subjects: [{kind: ServiceAccount, name: default, namespace: %[1]s}]
`, s.pods))
	token, err := kubernetes.token(s.pods, "default")
	if err != nil {
		t.Fatal(err)
	}
	if err := kubernetes.waitUntilAllowed(token, podsOf("any")+"/any", "/api/v1/nodes/any"); err != nil {
		t.Fatal(err)
	}
	s.useToken(kubernetes.server, token)
	return s
}

// newAgentSceneWithoutRights leaves the account to the caller, who has to call useToken.
func newAgentSceneWithoutRights(t *testing.T) *agentScene {
	t.Helper()
	nettest.RequireNetns(t) // root, whom alone the socket serves
	n := scenes.Add(1)
	s := &agentScene{t: t, pods: fmt.Sprintf("agent-pods-%d", n), mesh: fmt.Sprintf("agent-mesh-%d", n), node: fmt.Sprintf("node-%d", n)}
	for _, namespace := range []string{s.pods, s.mesh} {
		s.create(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", namespace))
		s.create(fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: default}}", namespace))
	}
	dialect, _ := mesh.Find("osm")
	dialect.Config.Namespace = s.mesh
	dir, err := os.MkdirTemp("", "agent") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s.conf = agent.Config{
		Node: s.node, Options: decision.Options{Dialect: dialect}, StateDir: dir, MetricsAddr: "127.0.0.1:0",
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
		Log:        slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &s.logs), nil)),
	}
	return s
}

// useToken makes the agent ask the server with the token.
func (s *agentScene) useToken(server, token string) {
	s.t.Helper()
	if err := os.WriteFile(s.conf.Kubeconfig, []byte(kubeconfigOf(server, token)), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// kubeconfigOf is a kubeconfig for an API server with the token.
func kubeconfigOf(server, token string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: account, user: {token: "%s"}}]
contexts: [{name: here, context: {cluster: here, user: account}}]
current-context: here
`, server, kubernetes.file("ca.crt"), token)
}

// flow makes a YAML list one that fits into a line.
func flow(t *testing.T, list string) string {
	t.Helper()
	o, err := parseObject([]byte("rules:" + list))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(o.Object["rules"])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (s *agentScene) create(text string) object {
	s.t.Helper()
	o, err := parseObject([]byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	stored, err := kubernetes.admin.apply(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return stored
}

// run starts the agent, until the test ends.
func (s *agentScene) run() {
	s.t.Helper()
	a, err := agent.New(s.conf)
	if err != nil {
		s.t.Fatal(err)
	}
	s.agent = a
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			s.t.Errorf("Run: %v", err)
		}
	})
	s.t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

func (s *agentScene) lookup(name, uid string) agentapi.Answer {
	s.t.Helper()
	request := agentapi.Request{Lookup: &pod.ID{Namespace: s.pods, Name: name, UID: uid}}
	answer, err := agentapi.Call(s.t.Context(), filepath.Join(s.conf.StateDir, agent.DefaultSocket), request, 5*time.Second)
	if err != nil {
		return agentapi.Answer{Error: err.Error()}
	}
	return answer
}

func (s *agentScene) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(pollTime) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it did not happen: %s", what)
		}
	}
}

// createPod makes a pod of both meshes that has been running for 40 seconds and that a controller owns.
func (s *agentScene) createPod(name, node string) object {
	s.t.Helper()
	p := s.create(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  namespace: %s
  name: %s
  labels: {app: %[2]s}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: r, uid: u, controller: true}]
spec:
  nodeName: %[3]s
  containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}, {name: istio-proxy, image: proxy}]
`, s.pods, name, node))
	since := time.Now().Add(-40 * time.Second).UTC().Format(time.RFC3339)
	status := fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s}
status:
  phase: Running
  podIP: 10.77.0.2
  podIPs: [{ip: 10.77.0.2}]
  containerStatuses: [{name: app, image: app, imageID: app, ready: true, restartCount: 0, state: {running: {startedAt: "%s"}}}]
`, s.pods, name, since)
	o, err := parseObject([]byte(status))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := kubernetes.admin.expect(http.MethodPatch, podsOf(s.pods)+"/"+name+"/status?fieldManager=apitest&force=true", o.Object, http.StatusOK); err != nil {
		s.t.Fatal(err)
	}
	return p
}

// get reads an object; there is none if it is empty.
func (s *agentScene) get(path string) map[string]any {
	s.t.Helper()
	body, err := kubernetes.admin.expect(http.MethodGet, path, nil, http.StatusOK, http.StatusNotFound)
	var o map[string]any
	if err != nil || json.Unmarshal(body, &o) != nil {
		s.t.Fatalf("get %s: %v", path, err)
	}
	if o["kind"] == "Status" {
		return nil
	}
	return o
}

func (s *agentScene) createConfig(port int) {
	s.t.Helper()
	s.create(fmt.Sprintf(`
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {namespace: %s, name: osm-mesh-config}
spec: {traffic: {outboundPortExclusionList: [%d]}}
`, s.mesh, port))
}

func TestTheAgentsCacheFollowsARealAPIServer(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newAgentScene(t)
	first := s.createPod("first", s.node)
	elsewhere := s.createPod("elsewhere", "another-node")
	s.createConfig(6379)
	s.run()
	s.eventually("it is ready", func() bool { return len(s.agent.Missing(t.Context())) == 0 })
	has := func(name string, uid string, words string) func() bool {
		return func() bool {
			answer := s.lookup(name, uid)
			return answer.Error == "" && len(answer.Pod) > 0 && strings.Contains(string(answer.Config)+answer.ConfigAbsent, words)
		}
	}
	s.eventually("the first pod", has("first", string(first.GetUID()), "6379"))
	gets := func() int {
		n := 0
		for _, r := range kubernetes.requests(t, s.pods) {
			if strings.HasPrefix(r, "get "+podsOf(s.pods)) {
				n++
			}
		}
		return n
	}
	before := gets()
	second := s.createPod("second", s.node)
	time.Sleep(time.Second)
	s.createConfig(1234)
	s.eventually("a change of the configuration", has("second", string(second.GetUID()), "1234"))
	if _, err := kubernetes.admin.expect(http.MethodDelete, meshConfigsOf(s.mesh)+"/osm-mesh-config", nil, http.StatusOK); err != nil {
		t.Fatal(err)
	}
	s.eventually("the configuration is deleted", has("second", string(second.GetUID()), "MeshConfig "+s.mesh+"/osm-mesh-config does not exist"))
	if n := gets() - before; n != 0 {
		t.Errorf("%d live requests for what the cache has", n)
	}
	if !has("elsewhere", string(elsewhere.GetUID()), "")() || gets() == before {
		t.Error("a pod of another node is not asked for live")
	}
	if answer := s.lookup("gone", "uid"); !answer.NotFound {
		t.Errorf("a pod that does not exist: %+v", answer)
	}
	lists := slices.DeleteFunc(kubernetes.requests(t, ""), func(r string) bool { return !strings.Contains(r, "spec.nodeName%3D"+s.node) })
	if len(lists) == 0 || !strings.Contains(strings.Join(lists, "\n"), "sendInitialEvents=true") {
		t.Errorf("the node's pods are not listed as a stream: %q", lists)
	}
}

func TestTheAgentRepairsAndReportsAtARealAPIServer(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newAgentScene(t)
	s.createConfig(6379)
	s.createPod("free", s.node)
	kept := s.createPod("kept", s.node)
	refused := s.createPod("refused", "another-node")
	// Without its controller a budget allows nothing yet.
	budget := map[string]any{
		"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": map[string]any{"name": "kept"},
		"spec": map[string]any{"maxUnavailable": 0, "selector": map[string]any{"matchLabels": map[string]any{"app": "kept"}}},
	}
	if _, err := kubernetes.admin.expect(http.MethodPost, "/apis/policy/v1/namespaces/"+s.pods+"/poddisruptionbudgets", budget, http.StatusCreated); err != nil {
		t.Fatal(err)
	}
	node := map[string]any{
		"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": s.node},
		"spec": map[string]any{"taints": []any{
			map[string]any{"key": "other", "effect": "NoSchedule", "value": "x"},
			map[string]any{"key": agent.Taint, "effect": "NoSchedule"},
			map[string]any{"key": agent.Taint, "effect": "NoExecute"},
		}},
	}
	if _, err := kubernetes.admin.expect(http.MethodPost, "/api/v1/nodes", node, http.StatusCreated); err != nil {
		t.Fatal(err)
	}
	s.conf.Repair, s.conf.MarkNode = repair.Evict, true
	s.run()

	s.eventually("the free pod is evicted", func() bool {
		p := s.get(podsOf(s.pods) + "/free")
		return p == nil || p["metadata"].(map[string]any)["deletionTimestamp"] != nil
	})
	s.eventually("the label comes and the taint goes", func() bool {
		n := s.get("/api/v1/nodes/" + s.node)
		labels, _ := n["metadata"].(map[string]any)["labels"].(map[string]any)
		taints, _ := json.Marshal(n["spec"].(map[string]any)["taints"])
		return labels[pod.ReadyLabel] == "true" && strings.Contains(string(taints), "other") && strings.Contains(string(taints), "NoExecute") && strings.Count(string(taints), agent.Taint) == 1
	})
	report := agentapi.Report{ID: pod.ID{Namespace: s.pods, Name: "refused", UID: string(refused.GetUID())}, Outcome: "failed", Code: 100, Reason: "annotation x: no"}
	s.eventually("the socket", func() bool {
		_, err := agentapi.Call(t.Context(), filepath.Join(s.conf.StateDir, agent.DefaultSocket), agentapi.Request{Report: &report}, time.Second)
		return err == nil
	})
	for reason, p := range map[string]object{"DetourUnprogrammed": kept, "DetourRefused": refused} {
		s.eventually("Event "+reason, func() bool {
			selector := "?fieldSelector=involvedObject.uid%3D" + string(p.GetUID()) + ",reason%3D" + reason
			items, _ := s.get("/api/v1/namespaces/" + s.pods + "/events" + selector)["items"].([]any)
			return len(items) == 1 && items[0].(map[string]any)["type"] == "Warning"
		})
	}
	if p := s.get(podsOf(s.pods) + "/kept"); p["metadata"].(map[string]any)["deletionTimestamp"] != nil {
		t.Error("the pod went although its budget does not allow that")
	}
}

// Not parallel, as what is served is the same for all tests.
func TestTheAgentFindsTheVersionThatIsServed(t *testing.T) {
	s := newAgentScene(t)
	if err := kubernetes.serve(); err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 10)
	s.conf.ConfigVersion = func(v string) { found <- v }
	s.run()
	s.eventually("it is ready without a mesh", func() bool { return len(s.agent.Missing(t.Context())) == 0 })
	for _, version := range []string{"v1alpha1", "v1alpha2"} {
		if err := kubernetes.serve(version); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-found:
			if got != version {
				t.Errorf("found %s, want %s", got, version)
			}
		case <-time.After(60 * time.Second):
			t.Fatalf("%s was not found", version)
		}
	}
}
