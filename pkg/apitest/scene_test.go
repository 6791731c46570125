//go:build kubeapi

package apitest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// meshConfigName is the one name that deploy/rbac.yaml lets the plugin ask for.
const meshConfigName = "osm-mesh-config"

// scene is a scenario of testdata/cases brought to life: the pod and the MeshConfig in the API server, each in a namespace
// of its own, and the pod's network, in which nothing is programmed yet.
type scene struct {
	t        *testing.T
	scenario testcase.Case
	world    *nettest.World
	dir      string
	// namespace and name are the pod's, mesh is the MeshConfig's namespace.
	namespace, name, mesh string

	node *nettest.Namespace // of the plugin; nil is this one

	// What the plugin is called with; a test may change it.
	conf  map[string]any
	args  string
	token string
}

var scenes atomic.Int64

func newScene(t *testing.T, scenario string) *scene {
	t.Helper()
	n := scenes.Add(1)
	s := newSceneIn(t, scenario, fmt.Sprintf("mesh-%d", n))
	s.conf["meshConfig"] = map[string]string{"namespace": s.mesh}
	return s
}

// newSceneIn puts the MeshConfig into the namespace and leaves it to the net conf to say so.
func newSceneIn(t *testing.T, scenario, mesh string) *scene {
	t.Helper()
	s := &scene{
		t:         t,
		scenario:  findCase(t, scenario),
		world:     nettest.StartWorld(t),
		dir:       t.TempDir(),
		namespace: fmt.Sprintf("shop-%d", scenes.Add(1)),
		mesh:      mesh,
		token:     detourToken,
	}
	s.createNamespace(s.namespace)
	s.createNamespace(s.mesh)
	pod := s.createSection("pod.yaml", s.namespace)
	if s.scenario.Section("meshconfig.yaml") != "" {
		s.createSection("meshconfig.yaml", s.mesh)
	}
	s.name = pod.GetName()
	s.args = s.argsFor(s.name, string(pod.GetUID()))
	s.conf = s.netConf()
	return s
}

func findCase(t *testing.T, name string) testcase.Case {
	t.Helper()
	cases := testcase.Load(t, "../..")
	i := slices.IndexFunc(cases, func(c testcase.Case) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("testdata/cases has no %s", name)
	}
	return cases[i]
}

// createNamespace makes a namespace with the ServiceAccount that a controller would put there; pods need it.
func (s *scene) createNamespace(name string) {
	s.t.Helper()
	s.create(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", name))
	s.create(fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %s, name: default}}", name))
}

// createSection creates the object in a section of the scenario. Its UID is the API server's business.
func (s *scene) createSection(section, namespace string) object {
	s.t.Helper()
	o, err := parseObject([]byte(s.scenario.Section(section)))
	if err != nil {
		s.t.Fatal(err)
	}
	o.SetNamespace(namespace)
	o.SetUID("")
	return s.apply(o)
}

func (s *scene) create(text string) {
	s.t.Helper()
	o, err := parseObject([]byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	s.apply(o)
}

func (s *scene) apply(o object) object {
	s.t.Helper()
	stored, err := kubernetes.admin.apply(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return stored
}

// argsFor returns CNI_ARGS as containerd passes them.
func (s *scene) argsFor(pod, uid string) string {
	return fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%s",
		s.namespace, pod, s.containerID(), uid)
}

func (s *scene) containerID() string { return "container-of-" + s.namespace }

func (s *scene) netConf() map[string]any {
	return map[string]any{
		"cniVersion": "1.1.0",
		"name":       "pods",
		"type":       "detour",
		"mesh":       s.scenario.Mesh,
		"stateDir":   filepath.Join(s.dir, "state"),
		"logFile":    s.logFile(),
		"prevResult": map[string]any{
			"cniVersion": "1.1.0",
			"interfaces": []any{map[string]any{"name": nettest.PodLink, "sandbox": s.world.Pod.Path()}},
			"ips": []any{
				map[string]any{"address": nettest.PodIPv4.String() + "/24", "gateway": nettest.OutsideIPv4.String(), "interface": 0},
				map[string]any{"address": nettest.PodIPv6.String() + "/64", "gateway": nettest.OutsideIPv6.String(), "interface": 0},
			},
			"dns": map[string]any{"nameservers": []any{"10.96.0.10"}},
		},
	}
}

func (s *scene) logFile() string { return filepath.Join(s.dir, "detour.log") }

// useServer gives the net conf a kubeconfig for the server and its CA, with the token in a file beside it.
func (s *scene) useServer(server, ca string) {
	s.t.Helper()
	s.write("token", s.token)
	s.conf["kubeconfig"] = s.write("kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: detour, user: {tokenFile: token}}]
contexts: [{name: detour, context: {cluster: here, user: detour}}]
current-context: detour
`, server, ca))
}

func (s *scene) write(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}
