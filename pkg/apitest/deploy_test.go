//go:build kubeapi

package apitest

import (
	"bytes"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
)

// stable are the policies for a later Kubernetes; see TestTheStablePoliciesAreTheBetaOnes.
const stable = "admission/v1"

// kustomizations returns the folders of deploy/ that are applied by themselves, and the components.
func kustomizations(t *testing.T) (whole, components []string) {
	t.Helper()
	root := "../../deploy"
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() != "kustomization.yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		switch {
		case bytes.Contains(text, []byte("kind: Component")):
			components = append(components, dir)
		case dir != "base" && dir != stable:
			whole = append(whole, dir)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(whole) < 7 || len(components) < 5 {
		t.Fatalf("deploy/ has only %q and the components %q", whole, components)
	}
	return whole, components
}

func TestTheAPIServerTakesAllOfDeploy(t *testing.T) {
	t.Parallel()
	dryRun := func(t *testing.T, dir string) {
		t.Helper()
		if _, err := kubectl(t, "apply", "--dry-run=server", "-k", dir); err != nil {
			t.Error(err)
		}
	}
	if err := serveMonitoring(); err != nil {
		t.Fatal(err)
	}
	whole, components := kustomizations(t)
	for _, dir := range whole {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			dryRun(t, filepath.Join("../../deploy", dir))
		})
	}
	for _, component := range components {
		t.Run(component, func(t *testing.T) {
			t.Parallel()
			dryRun(t, customize(t, []string{"overlays/osm"}, []string{component}, ""))
		})
	}
	t.Run("components together", func(t *testing.T) {
		t.Parallel()
		dryRun(t, customize(t, []string{"overlays/istio"}, []string{"components/ready-node", "components/repair-in-place", "components/no-api-fallback"}, ""))
	})
	t.Run("uninstalling with the node's label", func(t *testing.T) {
		t.Parallel()
		dryRun(t, customize(t, []string{"overlays/osm"}, []string{"components/ready-node", "components/uninstall"}, ""))
	})
	t.Run("another namespace", func(t *testing.T) {
		t.Parallel()
		dryRun(t, customize(t, []string{"overlays/osm"}, []string{"components/ready-node"}, "namespace: default\n"))
	})
	t.Run("uninstall/job.yaml", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("../../deploy/uninstall/job.yaml")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "job.yaml")
		if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte("NODE"), []byte("worker-1")), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := kubectl(t, "apply", "--dry-run=server", "-f", path); err != nil {
			t.Error(err)
		}
	})
}

// A test of the test above: a mistake in a kustomization does not pass.
func TestTheAPIServerRefusesAMistake(t *testing.T) {
	t.Parallel()
	dir := customize(t, []string{"overlays/osm"}, nil, `
patches:
  - target: {kind: DaemonSet}
    patch: |
      - {op: add, path: /spec/template/spec/containers/0/capabilities, value: {}}
`)
	_, err := kubectl(t, "apply", "--dry-run=server", "-k", dir)
	if err == nil || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("want an unknown field, got %v", err)
	}
}

func TestTheStablePoliciesAreTheBetaOnes(t *testing.T) {
	t.Parallel()
	want := render(t, "../../deploy/admission/v1beta1")
	got := render(t, filepath.Join("../../deploy", stable))
	for _, o := range want {
		o.SetAPIVersion("admissionregistration.k8s.io/v1")
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

// Each mesh that the plugin knows has an overlay, whose net conf the plugin takes and whose rights are for the mesh's
// configuration.
func TestEveryMeshHasAnOverlay(t *testing.T) {
	t.Parallel()
	folders, err := filepath.Glob("../../deploy/overlays/*")
	if err != nil || len(folders) != len(mesh.Names()) {
		t.Errorf("deploy/overlays has %q, the meshes are %q", folders, mesh.Names())
	}
	for _, name := range mesh.Names() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, "../../deploy/overlays/"+name)
			config := find(t, objects, "ConfigMap", "detour")
			text, _, _ := unstructured.NestedString(config.Object, "data", "netconf.json")
			conf, err := netconf.Parse([]byte(strings.Replace(text, "{", `{"agentSocket": "/run/detour/agent.sock", `, 1)))
			if err != nil || conf.Dialect.Name != name {
				t.Errorf("net conf %s: mesh %q, %v", text, conf.Dialect.Name, err)
			}
			ref := conf.Dialect.Config
			want := []any{map[string]any{
				"apiGroups": []any{ref.Group}, "resources": []any{ref.Resource}, "resourceNames": []any{ref.Name},
				"verbs": []any{"get", "list", "watch"},
			}}
			isRights := func(o unstructured.Unstructured) bool {
				return o.GetKind() == "ClusterRole" && o.GetName() == "detour-meshconfig"
			}
			if ref.IsZero() && slices.ContainsFunc(objects, isRights) {
				t.Error("it has rights to a configuration, but the mesh has none")
			}
			if !ref.IsZero() && !reflect.DeepEqual(find(t, objects, "ClusterRole", "detour-meshconfig").Object["rules"], want) {
				t.Errorf("the rights of detour-meshconfig are not %v", want)
			}
			used, _, _ := unstructured.NestedSlice(find(t, objects, "DaemonSet", "detour-agent").Object, "spec", "template", "spec", "volumes")
			if !slices.ContainsFunc(used, func(v any) bool {
				name, _, _ := unstructured.NestedString(v.(map[string]any), "configMap", "name")
				return name == config.GetName()
			}) {
				t.Errorf("no volume of %v is %s", used, config.GetName())
			}
		})
	}
}

// find returns the one object of the kind whose name begins with the prefix.
func find(t *testing.T, objects []object, kind, prefix string) object {
	t.Helper()
	var found []object
	for _, o := range objects {
		if o.GetKind() == kind && strings.HasPrefix(o.GetName(), prefix) {
			found = append(found, o)
		}
	}
	if len(found) == 2 && found[1].GetName() == prefix {
		found = found[1:]
	}
	if len(found) != 1 {
		t.Fatalf("%d objects are a %s %s", len(found), kind, prefix)
	}
	return found[0]
}

// A user changes the image, the mesh's configuration and the namespace by a kustomization of his own.
func TestACustomizedOverlay(t *testing.T) {
	t.Parallel()
	objects := render(t, customize(t, []string{"overlays/fsm"}, []string{"components/uninstall"}, `
namespace: elsewhere
images: [{name: ghcr.io/detour-cni/detour, newName: registry.example.com/detour, newTag: v9}]
`))
	agent := find(t, objects, "DaemonSet", "detour-agent")
	for _, list := range []string{"initContainers", "containers"} {
		containers, _, _ := unstructured.NestedSlice(agent.Object, "spec", "template", "spec", list)
		if len(containers) != 1 || containers[0].(map[string]any)["image"] != "registry.example.com/detour:v9" {
			t.Errorf("%s: %v", list, containers)
		}
	}
	if agent.GetNamespace() != "elsewhere" {
		t.Errorf("the DaemonSet is in %s", agent.GetNamespace())
	}
	for _, name := range []string{"detour-agent", "detour-meshconfig"} {
		subjects, _, _ := unstructured.NestedSlice(find(t, objects, "ClusterRoleBinding", name).Object, "subjects")
		if subjects[0].(map[string]any)["namespace"] != "elsewhere" {
			t.Errorf("the subjects of %s are %v", name, subjects)
		}
	}
}

// kubectl makes of an installed agent one that uninstalls, and nothing of the first is left in it.
func TestAnInstalledAgentBecomesItsOwnRemoval(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	path := "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/detour-agent"
	for _, components := range [][]string{{"components/ready-node", "components/repair-in-place"}, {"components/ready-node", "components/uninstall"}} {
		for _, o := range render(t, customize(t, []string{"overlays/osm"}, components, "namespace: "+namespace+"\n")) {
			if o.GetKind() != "DaemonSet" { // the rest would be everybody's
				continue
			}
			path := filepath.Join(t.TempDir(), "agent.yaml")
			if err := os.WriteFile(path, mustJSON(t, o.Object), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := kubectl(t, "apply", "-f", path); err != nil {
				t.Fatal(err)
			}
		}
	}
	body, err := kubernetes.admin.expect(http.MethodGet, path, nil, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	o, err := parseObject(body)
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf(t, o, namespace, "agent")
	if got := shape(pod); got != "uninstall | agent" {
		t.Errorf("its containers are %s", got)
	}
	folders := []string{"--cni-bin-dir=/host/opt/cni/bin", "--cni-conf-dir=/host/etc/cni/net.d", "--cni-cache-dir=/host/var/lib/cni/results"}
	// Only what takes the label off needs the node's name and the credential.
	for list, want := range map[string]struct {
		args        []string
		env, mounts int
	}{"initContainers": {[]string{"--once", "--unmark-node"}, 1, 6}, "containers": {[]string{"--wait"}, 0, 5}} {
		c := containersOf(pod, list)[0]
		args, _, _ := unstructured.NestedStringSlice(c, "args")
		if want := slices.Concat([]string{"uninstall"}, folders, want.args); !slices.Equal(args, want) {
			t.Errorf("%s: args %q, want %q", list, args, want)
		}
		env, _ := c["env"].([]any)
		if mounts := c["volumeMounts"].([]any); len(mounts) != want.mounts || len(env) != want.env {
			t.Errorf("%s: mounts %v, env %v", list, mounts, env)
		}
		for _, field := range []string{"ports", "readinessProbe", "livenessProbe"} {
			if c[field] != nil {
				t.Errorf("%s: %s is %v", list, field, c[field])
			}
		}
	}
	if volumes, _, _ := unstructured.NestedSlice(pod.Object, "spec", "volumes"); len(volumes) != 6 {
		t.Errorf("volumes %v", volumes)
	}
}

// podOf returns a pod of a DaemonSet's template.
func podOf(t *testing.T, daemonSet object, namespace, name string) object {
	t.Helper()
	spec, _, err := unstructured.NestedMap(daemonSet.Object, "spec", "template", "spec")
	if err != nil {
		t.Fatal(err)
	}
	pod := object{Object: map[string]any{"apiVersion": "v1", "kind": "Pod", "spec": spec}}
	pod.SetNamespace(namespace)
	pod.SetName(name)
	return pod
}

// The agent's namespace has the lowest of the Pod Security Standards: because of folders and network of the host, and, as
// deployed, of nothing else.
func TestWhatTheAgentsPodIsAllowed(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		components []string
		also       []string // what baseline refuses beyond host's folders, network and port
	}{
		{"as it is", nil, nil},
		{"repairing in place", []string{"components/repair-in-place"}, []string{"non-default capabilities"}},
		{"uninstalling", []string{"components/uninstall"}, nil},
	}
	const level = "pod-security.kubernetes.io/enforce="
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			objects := render(t, customize(t, []string{"overlays/osm"}, tt.components, ""))
			own := find(t, objects, "Namespace", "detour-system")
			label := own.GetLabels()["pod-security.kubernetes.io/enforce"]
			for namespace, want := range map[string]int{newNamespace(t, level+label): http.StatusCreated, newNamespace(t, level+"baseline"): http.StatusForbidden} {
				mustApply(t, mustParse(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: detour-agent, namespace: "+namespace+"}}"))
				pod := podOf(t, find(t, objects, "DaemonSet", "detour-agent"), namespace, "agent")
				code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), pod.Object)
				if err != nil || code != want {
					t.Fatalf("%d, want %d: %v %s", code, want, err, answer)
				}
				if want != http.StatusForbidden {
					continue
				}
				text := string(answer)
				for _, also := range append(tt.also, "host namespaces", "hostPath volumes") {
					if !strings.Contains(text, also) {
						t.Errorf("refused, but not for %s: %s", also, text)
					}
				}
				if tt.also == nil && strings.Contains(text, "capabilities") {
					t.Errorf("refused for %s", text)
				}
			}
		})
	}
}
