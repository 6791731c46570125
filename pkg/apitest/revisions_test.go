//go:build kubeapi

package apitest

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/detour-cni/detour/pkg/mesh"
)

// The rights of the istio overlay, on a mesh of the test's own: they are enough to follow the configuration of each revision,
// and they end with the mesh's namespace.
func TestTheAgentFollowsEachRevisionsConfigurationWithTheRightsInDeploy(t *testing.T) {
	t.Parallel()
	s := newAgentScene(t)
	for _, o := range render(t, "../../deploy/overlays/istio") {
		switch {
		case o.GetName() != "detour-revisions":
			continue
		case o.GetNamespace() != "istio-system":
			t.Errorf("%s is in %s", o.GetKind(), o.GetNamespace())
		}
		o.SetNamespace(s.mesh)
		if o.GetKind() == "RoleBinding" {
			subject := []any{map[string]any{"kind": "ServiceAccount", "name": "default", "namespace": s.pods}}
			if err := unstructured.SetNestedSlice(o.Object, subject, "subjects"); err != nil {
				t.Fatal(err)
			}
		}
		mustApply(t, o)
	}
	config := func(name string, port int) {
		s.create(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {namespace: %s, name: %s}, data: {mesh: 'proxyListenPort: %d'}}", s.mesh, name, port))
	}
	pod := func(name, revision string) string {
		o := s.create(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, annotations: {istio.io/rev: %s}}
spec: {nodeName: %s, containers: [{name: app, image: app}, {name: istio-proxy, image: proxy}]}
`, s.pods, name, revision, s.node))
		return string(o.GetUID())
	}
	config("istio", 16001)
	config("istio-canary", 16002)
	config("istio-elsewhere", 16003)
	uids := map[string]string{"usual": pod("usual", "default"), "new": pod("new", "canary"), "lost": pod("lost", "gone")}

	token, err := kubernetes.token(s.pods, "default")
	if err != nil {
		t.Fatal(err)
	}
	of := func(namespace string) string { return "/api/v1/namespaces/" + namespace + "/configmaps" }
	if err := kubernetes.waitUntilAllowed(token, of(s.mesh)+"/any"); err != nil {
		t.Fatal(err)
	}
	answers(t, kubernetes.as(token), []request{
		{"GET", of(s.mesh) + "?fieldSelector=metadata.name%3Distio-canary", nil, 200},
		{"GET", of("istio-system") + "/istio", nil, 403},
		{"GET", of(s.pods) + "/any", nil, 403},
		{"GET", "/api/v1/configmaps", nil, 403},
		{"PATCH", of(s.mesh) + "/istio-canary", map[string]any{}, 403},
		{"GET", "/api/v1/namespaces/" + s.mesh + "/secrets", nil, 403},
	})

	s.conf.Dialect, _ = mesh.Find("istio")
	s.conf.Dialect.Config.Namespace = s.mesh
	s.run()
	s.eventually("it is ready", func() bool { return len(s.agent.Missing(t.Context())) == 0 })
	gets := func() int {
		n := 0
		for _, r := range kubernetes.requests(t, s.pods, s.mesh) {
			if strings.HasPrefix(r, "get ") {
				n++
			}
		}
		return n
	}
	cached := func(name, words string) func() bool {
		return func() bool {
			before := gets()
			answer := s.lookup(name, uids[name])
			return answer.Error == "" && strings.Contains(string(answer.Config)+answer.ConfigAbsent, words) && gets() == before
		}
	}
	s.eventually("the usual configuration", cached("usual", "16001"))
	s.eventually("the revision's", cached("new", "16002"))
	s.eventually("that a revision has none", cached("lost", "ConfigMap "+s.mesh+"/istio-gone does not exist"))
	config("istio-canary", 16012)
	s.eventually("a change", cached("new", "16012"))
	if all := strings.Join(kubernetes.requests(t, s.mesh), "\n"); !strings.Contains(all, "metadata.name%3Distio-canary") || strings.Contains(all, "metadata.name%3Distio-elsewhere") {
		t.Error("the agent follows what no pod of the node names, or lists more than it needs")
	}
}

// STATUS as a runtime asks for it: an agent whose cache is whole answers without a request to the API server.
func TestStatusThroughTheAgentAsksTheAPIServerNothing(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newAgentScene(t)
	s.createConfig(6379)
	s.run()
	s.eventually("it is ready", func() bool { return len(s.agent.Missing(t.Context())) == 0 })
	c := newScene(t, "osm/guide")
	c.conf["agentSocket"] = filepath.Join(s.conf.StateDir, "agent.sock")
	asked := func() []string { return kubernetes.requests(t, s.pods, s.mesh, c.mesh, c.namespace) }
	before := asked()
	for range 20 {
		if o := c.call("STATUS"); o.Code != 0 {
			t.Fatal(o.Error)
		}
	}
	if after := asked(); len(after) != len(before) {
		t.Errorf("20 times STATUS made %d requests: %q", len(after)-len(before), after)
	}
}
