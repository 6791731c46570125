//go:build chart

package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/mesh"
)

const (
	root  = "../.."
	chart = root + "/deploy/helm/detour"
)

var builder = kustomize{program: os.Getenv("DETOUR_KUSTOMIZE"), root: root}

func TestMakeChartWouldChangeNothing(t *testing.T) {
	want, err := generate(builder)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(root, templates, name))
		if err != nil || string(got) != text {
			t.Errorf("%s is not what deploy/ makes (%v): run make chart", name, err)
		}
	}
	paths, err := filepath.Glob(filepath.Join(root, templates, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if _, made := want[filepath.Base(path)]; err != nil || !made && bytes.Contains(text, []byte("`make chart`")) {
			t.Errorf("%s is not made any more: delete it (%v)", path, err)
		}
	}
}

func TestEveryOverlayAndComponentIsInTheChart(t *testing.T) {
	var parts []string
	for _, p := range slices.Concat([]part{base}, meshes, components) {
		parts = append(parts, filepath.Base(p.folder))
	}
	for _, of := range []string{"overlays", "components"} {
		entries, err := os.ReadDir(filepath.Join(root, "deploy", of))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "uninstall" && !slices.Contains(parts, e.Name()) {
				t.Errorf("the chart knows nothing of deploy/%s/%s", of, e.Name())
			}
		}
	}
}

// option is a chart's option, and what a user of kustomize does for the same.
type option struct {
	name       string
	values     string   // YAML
	components []string // in deploy/components
	fields     string   // of the kustomization
	netConf    string   // other fields, JSON
	policies   string   // folder in deploy/admission
	args       []string // of helm
}

const serves = "--api-versions=admissionregistration.k8s.io/%s/MutatingAdmissionPolicy"

var options = []option{
	{name: "nothing"},
	{name: "evict", values: "repair: evict", components: []string{"repair-evict"}},
	{name: "in place", values: "repair: in-place", components: []string{"repair-in-place"}},
	{name: "no fallback", values: "apiFallback: false", components: []string{"no-api-fallback"}},
	{name: "ready node", values: "readyNode: true", components: []string{readyNode}},
	{name: "webhook", values: "admission: webhook", components: []string{readyNode, "webhook"}},
	{name: "beta policies", values: "admission: policies", components: []string{readyNode}, policies: "v1beta1", args: []string{fmt.Sprintf(serves, "v1beta1")}},
	{name: "stable policies", values: "admission: policies", components: []string{readyNode}, policies: "v1", args: []string{fmt.Sprintf(serves, "v1"), fmt.Sprintf(serves, "v1beta1")}},
	{
		name: "all together", values: "{readyNode: true, repair: in-place, apiFallback: false, admission: webhook, podMonitor: true, alerts: true, dashboard: true}",
		components: []string{readyNode, "repair-in-place", "no-api-fallback", "webhook", "monitoring"},
	},
	{name: "backend", values: "backend: nftables", netConf: `"backend": "nftables"`},
	{
		name: "net conf", values: `{backend: iptables, netConf: {logFile: /var/log/detour.log, excludeNamespaces: [kube-system, <b>], proxy: {uid: 4294967295}, timeout: 5s}}`,
		netConf: `"backend": "iptables", "logFile": "/var/log/detour.log", "excludeNamespaces": ["kube-system", "<b>"], "proxy": {"uid": 4294967295}, "timeout": "5s"`,
	},
	// The digest is what a released chart has.
	{name: "image", values: "image: {repository: example.com/d, tag: v9, digest: sha256:" + digest + "}", fields: "images: [{name: ghcr.io/detour-cni/detour, newName: example.com/d, newTag: v9}]"},
	{
		name: "digest", values: "image: {digest: sha256:" + digest + "}",
		fields: "images: [{name: ghcr.io/detour-cni/detour, digest: sha256:" + digest + "}]",
	},
	{name: "pull", values: "image: {pullPolicy: Always, pullSecrets: [{name: a}, {name: b}]}", fields: patchOf("DaemonSet", `
- {op: replace, path: /spec/template/spec/containers/0/imagePullPolicy, value: Always}
- {op: add, path: /spec/template/spec/imagePullSecrets, value: [{name: a}, {name: b}]}`)},
	{
		name: "pull webhooks", values: "{admission: webhook, image: {pullSecrets: [{name: a}]}}", components: []string{readyNode, "webhook"},
		fields: patchOf("DaemonSet|Deployment", `
- {op: add, path: /spec/template/spec/imagePullSecrets, value: [{name: a}]}`),
	},
	{name: "where it runs", values: "{tolerations: [{key: k, operator: Exists}], nodeSelector: {zone: a}, resources: {limits: {memory: 1Gi}}}", fields: patchOf("DaemonSet", `
- {op: replace, path: /spec/template/spec/tolerations, value: [{key: k, operator: Exists}]}
- {op: add, path: /spec/template/spec/nodeSelector/zone, value: a}
- {op: replace, path: /spec/template/spec/containers/0/resources/limits/memory, value: 1Gi}`)},
	{
		name: "more webhooks", values: "{admission: webhook, webhook: {replicas: 3, resources: {requests: {cpu: 1}}}}", components: []string{readyNode, "webhook"},
		fields: patchOf("Deployment", `
- {op: replace, path: /spec/replicas, value: 3}
- {op: replace, path: /spec/template/spec/containers/0/resources/requests/cpu, value: 1}`),
	},
	{name: "monitoring", values: "{podMonitor: true, alerts: true, dashboard: true}", components: []string{"monitoring"}},
	{name: "folders", values: "cni: {binDir: /usr/lib/cni, confDir: /srv/cni/net.d}", fields: patchOf("DaemonSet", `
- {op: replace, path: /spec/template/spec/volumes/0/hostPath/path, value: /usr/lib/cni}
- {op: replace, path: /spec/template/spec/volumes/1/hostPath/path, value: /srv/cni/net.d}
- {op: replace, path: /spec/template/spec/containers/0/args/4, value: --host-cni-conf-dir=/srv/cni/net.d}`)},
}

// readyNode is the component that labels nodes.
const readyNode = "ready-node"

var digest = strings.Repeat("0123456789abcdef", 4)

// patchOf is a kustomization's field that patches the objects of a kind; operations begin with a line's end.
func patchOf(kind, operations string) string {
	return "patches:\n- target: {kind: " + kind + "}\n  patch: |" + strings.ReplaceAll(operations, "\n", "\n    ")
}

func TestTheChartIsWhatKustomizeBuilds(t *testing.T) {
	for _, m := range mesh.Names() {
		for _, o := range options {
			t.Run(m+"/"+o.name, func(t *testing.T) {
				t.Parallel()
				args := append([]string{"--namespace=detour-system", "--set=mesh=" + m, "--values=" + valuesFile(t, o.values)}, o.args...)
				same(t, helmObjects(t, args...), o.build(t, m))
			})
		}
	}
}

// build builds what a user of kustomize would write.
func (o option) build(t *testing.T, m string) map[string]string {
	t.Helper()
	up := func(folder string) string {
		path, err := filepath.Abs(filepath.Join(root, "deploy", folder))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	dir := t.TempDir()
	relative := func(folder string) string {
		path, err := filepath.Rel(dir, up(folder))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	text := "resources:\n- " + relative("overlays/"+m) + "\n"
	if o.policies != "" {
		text += "- " + relative("admission/"+o.policies) + "\n"
	}
	text += "components:\n"
	for _, c := range o.components {
		text += "- " + relative("components/"+c) + "\n"
	}
	if o.netConf != "" {
		text += "configMapGenerator:\n- name: detour\n  namespace: detour-system\n  behavior: replace\n  literals:\n  - |\n" +
			"    netconf.json={\"mesh\": \"" + m + "\", " + o.netConf + "}\n"
	}
	text += o.fields + "\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(builder.program, "build", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
	return normalized(t, string(out))
}

// normalized returns the objects by kind and name, without what differs on purpose. This is all of it:
//   - Helm's labels and its comments.
//   - The namespace: Helm's user makes it.
//   - The net conf's ConfigMap: kustomize has a hash in its name, Helm in an annotation of those that read it. It
//     is compared as JSON.
//   - Helm's hook.
func normalized(t *testing.T, text string) map[string]string {
	t.Helper()
	for _, key := range []string{"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart", "checksum/netconf"} {
		text = regexp.MustCompile(`(?m)^ *`+key+`: .*\n`).ReplaceAllString(text, "")
	}
	if name := netConf.FindStringSubmatch(text); name != nil {
		text = strings.ReplaceAll(text, name[1], "detour")
	}
	objects := map[string]string{}
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatalf("%v: %s", err, document)
		}
		if o == nil {
			continue
		}
		key := fmt.Sprint(o["kind"], " ", o["metadata"].(map[string]any)["name"])
		if strings.Contains(document, "helm.sh/hook:") || o["kind"] == "Namespace" {
			continue
		}
		if data, ok := o["data"].(map[string]any); ok && key == "ConfigMap detour" {
			var conf any
			if err := yaml.Unmarshal([]byte(data["netconf.json"].(string)), &conf); err != nil {
				t.Fatal(err)
			}
			data["netconf.json"] = conf
		}
		if metadata := o["metadata"].(map[string]any); metadata["labels"] == nil {
			delete(metadata, "labels") // there were only Helm's
		}
		if _, twice := objects[key]; twice {
			t.Errorf("there are two %s", key)
		}
		canonical, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		objects[key] = string(canonical)
	}
	return objects
}

func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	if len(want) < 6 {
		t.Errorf("kustomize builds only %d objects", len(want))
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if got[key] != want[key] {
			t.Errorf("%s is\n%s\nwant\n%s", key, got[key], want[key])
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Errorf("kustomize builds no %s", key)
		}
	}
}

// helm runs helm.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Getenv("DETOUR_HELM"), args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir())
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("helm %q: %w: %s", args, err, stderr.String())
	}
	return stdout.String(), nil
}

// helmTemplate renders the chart.
func helmTemplate(t *testing.T, args ...string) string {
	t.Helper()
	out, err := helm(t, append([]string{"template", "detour", chart}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func helmObjects(t *testing.T, args ...string) map[string]string {
	t.Helper()
	return normalized(t, helmTemplate(t, args...))
}

// valuesFile writes YAML for --values, which splits a path at commas.
func valuesFile(t *testing.T, text string) string {
	t.Helper()
	f, err := os.CreateTemp("", "values-*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Cleanup(func() { os.Remove(f.Name()) })
	if _, err := f.WriteString(text + "\n"); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
