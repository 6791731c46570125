//go:build chart

package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/mesh"
)

// hooks are the objects of `helm uninstall`, by kind.
func hooks(t *testing.T, args ...string) map[string]map[string]any {
	t.Helper()
	found := map[string]map[string]any{}
	for document := range strings.SplitSeq(helmTemplate(t, args...), "\n---\n") {
		if !strings.Contains(document, "helm.sh/hook: pre-delete") {
			continue
		}
		var o map[string]any
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		found[o["kind"].(string)] = o
	}
	return found
}

// What `helm uninstall` makes of the agents is what the component uninstall makes.
func TestTheHookUninstallsAsTheComponentDoes(t *testing.T) {
	const folders = "cni: {binDir: /usr/lib/cni, confDir: /srv/cni/net.d}"
	for name, values := range map[string]string{"as it is": "{}", "other folders": folders} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := hooks(t, "--set=mesh=osm", "--values="+valuesFile(t, values))["ConfigMap"]["data"].(map[string]any)
			patch := data["patch.yaml"].(string)
			want := option{components: []string{"uninstall"}}
			if values == folders {
				want.fields = patchOf("DaemonSet", `
- {op: replace, path: /spec/template/spec/volumes/0/hostPath/path, value: /usr/lib/cni}
- {op: replace, path: /spec/template/spec/volumes/1/hostPath/path, value: /srv/cni/net.d}`)
			}
			same(t, option{fields: patchOf("DaemonSet", "\n"+patch)}.build(t, "osm"), want.build(t, "osm"))
		})
	}
}

// What changes pods at admission goes first, all of it, by a right to just that.
func TestTheHookFirstDeletesWhatChangesPods(t *testing.T) {
	kinds := map[string]string{
		"MutatingWebhookConfiguration":   "mutatingwebhookconfigurations",
		"ValidatingWebhookConfiguration": "validatingwebhookconfigurations",
		"MutatingAdmissionPolicyBinding": "mutatingadmissionpolicybindings",
	}
	for name, tt := range map[string]struct {
		version string
		args    []string
	}{
		"none":     {args: []string{"--set=admission=none"}},
		"webhook":  {"v1", []string{"--set=admission=webhook"}},
		"policies": {"v1", []string{"--set=admission=policies", fmt.Sprintf(serves, "v1")}},
		"beta":     {"v1beta1", []string{"--set=admission=policies", fmt.Sprintf(serves, "v1beta1")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := slices.Concat(tt.args, []string{"--set=mesh=osm"})
			var want []string
			for key := range helmObjects(t, args...) {
				kind, name, _ := strings.Cut(key, " ")
				if kinds[kind] != "" {
					want = append(want, "/apis/admissionregistration.k8s.io/"+tt.version+"/"+kinds[kind]+"/"+name)
				}
			}
			hook := hooks(t, args...)
			job, err := yaml.Marshal(hook["Job"])
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for line := range strings.Lines(string(job)) {
				_, path, ok := strings.Cut(strings.TrimSpace(line), "--delete-first=")
				if ok && !strings.HasSuffix(path, "/deployments/detour-webhook") {
					got = append(got, path)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || (len(want) == 0) != (name == "none") {
				t.Errorf("it deletes %q, want %q", got, want)
			}
			if hook["ClusterRole"] == nil {
				if len(want) > 0 {
					t.Error("it may not")
				}
				return
			}
			rule := hook["ClusterRole"]["rules"].([]any)[0].(map[string]any)
			for _, path := range want {
				parts := strings.Split(path, "/")
				resources, names := rule["resources"].([]any), rule["resourceNames"].([]any)
				if !slices.Contains(resources, any(parts[4])) || !slices.Contains(names, any(parts[5])) {
					t.Errorf("%v does not allow to delete %s", rule, path)
				}
			}
		})
	}
}

// Nothing names the namespace that the manifests have, wherever the chart is installed.
func TestTheChartFollowsItsNamespace(t *testing.T) {
	for _, m := range mesh.Names() {
		for _, o := range options {
			t.Run(m+"/"+o.name, func(t *testing.T) {
				t.Parallel()
				args := append([]string{"--namespace=123", "--set=mesh=" + m, "--values=" + valuesFile(t, o.values)}, o.args...)
				out := helmTemplate(t, args...)
				if strings.Contains(out, "detour-system") {
					t.Error("it names detour-system")
				}
				normalized(t, strings.ReplaceAll(out, `"123"`, "a")) // it is YAML
				if strings.Contains(out, "namespace: 123\n") {
					t.Error("a namespace is a number")
				}
			})
		}
	}
}

// The rights to the mesh's configuration follow the net conf.
func TestTheRightsFollowTheMeshsConfiguration(t *testing.T) {
	objects := helmObjects(t, "--set=mesh=istio,netConf.meshConfig.namespace=mesh,netConf.meshConfig.name=istio-one")
	if !strings.Contains(objects["ClusterRole detour-meshconfig"], "- istio-one\n") {
		t.Errorf("it may read %s", objects["ClusterRole detour-meshconfig"])
	}
	for _, key := range []string{"Role detour-revisions", "RoleBinding detour-revisions"} {
		if !strings.Contains(objects[key], "namespace: mesh\n") {
			t.Errorf("%s is %s", key, objects[key])
		}
	}
}

// The notes say for each mesh how its init container is left out, and how to go on.
func TestTheNotesSayWhatToDo(t *testing.T) {
	for m, want := range map[string][]string{
		"osm":      {"admission=webhook", "detour.io/remove-init=enabled"},
		"osm-v1":   {"admission=webhook", "detour.io/remove-init=enabled"},
		"osm-edge": {"interceptionMode", "admission=webhook", "-n osm-system"},
		"fsm":      {"interceptionMode", "admission=webhook", "-n fsm-system"},
		"istio":    {"pilot.cni.enabled=true", "--namespace istio-system"},
	} {
		out, err := helm(t, "install", "mine", chart, "--dry-run=client", "--namespace=there", "--set=mesh="+m)
		_, notes, _ := strings.Cut(out, "NOTES:\n")
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range append(want, "kubectl -n there rollout status daemonset/detour-agent", "helm -n there uninstall mine") {
			if !strings.Contains(notes, words) {
				t.Errorf("%s: the notes do not say %q:\n%s", m, words, notes)
			}
		}
		if m == "istio" && strings.Contains(notes, "remove-init") {
			t.Errorf("istio needs no label:\n%s", notes)
		}
	}
}
