//go:build kubeapi

package apitest

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/detour-cni/detour/pkg/mesh"
)

// renderChart returns what helm makes of the Helm chart, hooks included.
func renderChart(t *testing.T, args ...string) []object {
	t.Helper()
	helm := os.Getenv("DETOUR_HELM")
	if helm == "" {
		t.Fatal("DETOUR_HELM is not set: run scripts/test-api.sh (make test-api)")
	}
	const policies = "--api-versions=admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy"
	all := append([]string{"template", "detour", "../../deploy/helm/detour", policies}, args...)
	out, err := exec.Command(helm, all...).CombinedOutput()
	if err != nil {
		t.Fatalf("helm %q: %v: %s", all, err, out)
	}
	objects, err := parseManifest("helm template", out)
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestTheAPIServerTakesTheChart(t *testing.T) {
	t.Parallel()
	for _, name := range mesh.Names() {
		for admission, values := range map[string]string{
			"none": "", "policies": ",repair=evict", "webhook": ",repair=in-place,apiFallback=false,image.pullSecrets[0].name=registry",
		} {
			t.Run(name+"/"+admission, func(t *testing.T) {
				t.Parallel()
				var text strings.Builder
				for _, o := range renderChart(t, "--namespace=detour-system", "--set=mesh="+name+",admission="+admission+values) {
					fmt.Fprintf(&text, "---\n%s\n", mustJSON(t, o.Object))
				}
				path := filepath.Join(t.TempDir(), "chart.yaml")
				if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := kubectl(t, "apply", "--dry-run=server", "-f", path); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The hook of `helm uninstall`, with its own rights and no other: it patches the agents' DaemonSet, names the nodes that are not
// done, and ends when all are.
func TestTheChartsHookUninstalls(t *testing.T) {
	t.Parallel()
	namespace := newNamespace(t)
	var stored object
	hook := map[string]object{}
	for _, o := range renderChart(t, "--namespace="+namespace, "--set=mesh=osm,admission=none,uninstall.timeout=3s") {
		_, isHook := o.GetAnnotations()["helm.sh/hook"]
		switch {
		case isHook:
			hook[o.GetKind()] = o
			if slices.Contains([]string{"ServiceAccount", "Role", "RoleBinding"}, o.GetKind()) {
				mustApply(t, o)
			}
		case o.GetKind() == "DaemonSet":
			stored = mustApply(t, o)
		}
	}
	uninstall := hookCommand(t, hook, namespace, rightsOf(t, hook["Role"]))

	createAgentPod(t, stored, namespace)
	const want = "after 3s these may still start pods with it: node-a;"
	if out, err := uninstall(); err == nil || !strings.Contains(out, want) {
		t.Errorf("%v: %s\nwant %s", err, out, want)
	}

	path := "/apis/apps/v1/namespaces/" + namespace + "/daemonsets/detour-agent"
	status := map[string]any{"status": map[string]any{
		"observedGeneration": 2, "desiredNumberScheduled": 1, "currentNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1,
		"numberReady": 1, "numberMisscheduled": 0,
	}}
	if code, answer, err := kubernetes.admin.sendAs(mergePatch, http.MethodPatch, path+"/status", status); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s %v", code, answer, err)
	}
	if out, err := uninstall(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	body, err := kubernetes.admin.expect(http.MethodGet, path, nil, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := parseObject(body)
	if err != nil {
		t.Fatal(err)
	}
	generation, _, _ := unstructured.NestedFieldNoCopy(patched.Object, "metadata", "generation")
	if got := shape(podOf(t, patched, namespace, "agent")); got != "uninstall | agent" || fmt.Sprint(generation) != "2" {
		t.Errorf("the agents' containers are %s, generation %v", got, generation)
	}
}
