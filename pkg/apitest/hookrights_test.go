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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// hookObjects are those of `helm uninstall`, for all kinds of admission.
func hookObjects(t *testing.T) (objects []object) {
	t.Helper()
	for _, admission := range []string{"none", "policies", "webhook"} {
		for _, o := range renderChart(t, "--namespace=detour-system", "--set=mesh=osm,admission="+admission) {
			if _, isHook := o.GetAnnotations()["helm.sh/hook"]; isHook {
				objects = append(objects, o)
			}
		}
	}
	return objects
}

// The hook's program with each of its rights taken away. It says which, or can't name the nodes that are not done.
func TestTheChartsHookNeedsEachOfItsRights(t *testing.T) {
	t.Parallel()
	for _, admission := range []string{"policies", "webhook"} {
		var rights []right
		for _, o := range renderChart(t, "--namespace=detour-system", "--set=mesh=osm,admission="+admission) {
			if o.GetName() == "detour-uninstall" {
				rights = append(rights, rightsOf(t, o)...)
			}
		}
		if len(rights) < 5 {
			t.Errorf("with %s the hook has only %q", admission, rights)
		}
		for _, r := range append(rights, right{}) {
			t.Run(admission+"/"+r.String(), func(t *testing.T) {
				t.Parallel()
				out := runHook(t, admission, r)
				if r != (right{}) && !r.isMissedIn(out) {
					t.Errorf("it does not say what is missing: %s", out)
				} else if r == (right{}) && (strings.Contains(out, "cannot") || !strings.Contains(out, "after 3s these may still start pods with it: node-a;")) {
					t.Errorf("with all rights it says %s", out)
				}
			})
		}
	}
}

// runHook runs the hook in an installation with one node that is never done. Its rights are for a namespace of the test's own.
func runHook(t *testing.T, admission string, without right) (out string) {
	t.Helper()
	namespace := newNamespace(t)
	var daemonSet object
	var left []right
	hook := map[string]object{}
	for _, o := range renderChart(t, "--namespace="+namespace, "--set=mesh=osm,uninstall.timeout=3s,admission="+admission) {
		_, isHook := o.GetAnnotations()["helm.sh/hook"]
		switch {
		case o.GetKind() == "DaemonSet":
			daemonSet = mustApply(t, o)
		case isHook:
			hook[o.GetKind()] = o
			if o.GetKind() == "Job" || o.GetKind() == "ConfigMap" {
				continue
			}
			takeAway(t, o, without)
			renameBindings(t, o, namespace)
			left = append(left, rightsOf(t, o)...)
			if o.GetNamespace() == "" {
				o.SetName(o.GetName() + "-" + namespace)
			}
			if roleRef, ok := o.Object["roleRef"].(map[string]any); ok && o.GetNamespace() == "" {
				roleRef["name"] = o.GetName()
			}
			mustApply(t, o)
		}
	}
	createAgentPod(t, daemonSet, namespace)
	out, err := hookCommand(t, hook, namespace, left)()
	if err == nil {
		t.Errorf("it does not wait for the node: %s", out)
	}
	return out
}

// hookCommand returns what runs the Job's command with the ConfigMap's patch, as the Job's ServiceAccount.
func hookCommand(t *testing.T, hook map[string]object, namespace string, rights []right) func() (string, error) {
	t.Helper()
	dir := t.TempDir()
	program, err := builtProgram("detour-agent")
	if err != nil {
		t.Fatal(err)
	}
	token, err := kubernetes.token(namespace, "detour-uninstall")
	if err != nil {
		t.Fatal(err)
	}
	waitForRights(t, token, namespace, rights)
	patch, _, _ := unstructured.NestedString(hook["ConfigMap"].Object, "data", "patch.yaml")
	kubeconfig := fmt.Sprintf(`clusters: [{name: here, cluster: {server: "%s", certificate-authority: "%s"}}]
users: [{name: hook, user: {token: "%s"}}]
contexts: [{name: here, context: {cluster: here, user: hook}}]
current-context: here
`, kubernetes.server, kubernetes.file("ca.crt"), token)
	for name, text := range map[string]string{"patch.yaml": patch, "kubeconfig": kubeconfig} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	job := podOf(t, hook["Job"], namespace, "uninstall")
	args, _, _ := unstructured.NestedStringSlice(containersOf(job, "containers")[0], "args")
	for i, arg := range args {
		args[i] = strings.ReplaceAll(arg, "/etc/detour/", dir+"/")
		if strings.Contains(arg, "/"+policyBindings+"/") {
			args[i] += "-" + namespace
		}
	}
	args = append(args, "--kubeconfig="+filepath.Join(dir, "kubeconfig"))
	return func() (string, error) {
		out, err := exec.Command(program, args...).CombinedOutput()
		return string(out), err
	}
}

const policyBindings = "mutatingadmissionpolicybindings"

// renameBindings has a role name bindings that do not exist: those of the policies are other tests'.
func renameBindings(t *testing.T, role object, namespace string) {
	t.Helper()
	rules, _, _ := unstructured.NestedSlice(role.Object, "rules")
	for _, rule := range rules {
		r := rule.(map[string]any)
		resources, _, _ := unstructured.NestedStringSlice(r, "resources")
		names, _, _ := unstructured.NestedStringSlice(r, "resourceNames")
		if !slices.Contains(resources, policyBindings) {
			continue
		}
		for i := range names {
			names[i] += "-" + namespace
		}
		if err := unstructured.SetNestedStringSlice(r, names, "resourceNames"); err != nil {
			t.Fatal(err)
		}
	}
	if len(rules) > 0 {
		if err := unstructured.SetNestedSlice(role.Object, rules, "rules"); err != nil {
			t.Fatal(err)
		}
	}
}

// createAgentPod makes the DaemonSet's pod of node-a, as there are no controllers here.
func createAgentPod(t *testing.T, daemonSet object, namespace string) {
	t.Helper()
	pod := podOf(t, daemonSet, namespace, "agent-of-a")
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "DaemonSet", Name: daemonSet.GetName(), UID: daemonSet.GetUID()}
	pod.SetOwnerReferences([]metav1.OwnerReference{owner})
	pod.Object["spec"].(map[string]any)["nodeName"] = "node-a"
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: detour-agent, namespace: "+namespace+"}}"))
	if _, err := kubernetes.admin.expect(http.MethodPost, podsOf(namespace), pod.Object, http.StatusCreated); err != nil {
		t.Fatal(err)
	}
}
