package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/pod"
)

const (
	podYAML = `apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
spec:
  securityContext: {runAsUser: 9007199254740993}
`
	configYAML = `apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {name: osm-mesh-config, namespace: osm-system}
`
)

// folder writes files given as name, content, name, content.
func folder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		write(t, dir, files[i], files[i+1])
	}
	return dir
}

func indent(s string) string {
	return "- " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ") + "\n"
}

func TestManifestsFindPodAndConfig(t *testing.T) {
	t.Parallel()
	asJSON := strings.Replace(podJSON, `,"metadata"`, ",\n\t\"metadata\"", 1)
	tests := []struct {
		name  string
		files []string
	}{
		{"in one file", []string{"all.yaml", podYAML + "---\n" + configYAML}},
		{"in two files", []string{"a.yml", configYAML, "b.yaml", podYAML}},
		{"in a JSON file that has tabs", []string{"a.yml", configYAML, "b.json", asJSON}},
		{"beside files that are none of ours", []string{"a.yaml", podYAML + "---\n" + configYAML, "README.md", "{"}},
		{"in a List", []string{"a.yaml", "apiVersion: v1\nkind: List\nitems:\n" + indent(podYAML) + indent(configYAML)}},
		{"in a List of Lists", []string{"a.yaml", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n  " + strings.ReplaceAll(indent(podYAML), "\n", "\n  ") + "\n" + indent(configYAML)}},
		{"between empty documents and comments", []string{"a.yaml", "# hi\n---\n---\n# there\n" + podYAML + "---\t# next\n" + configYAML + "---\n"}},
		{"with a directive and DOS line ends", []string{"a.yaml", strings.ReplaceAll("%YAML 1.1\n---\n"+podYAML+"---\n"+configYAML, "\n", "\r\n")}},
		{"with an older version", []string{"a.yaml", podYAML + "---\n" + strings.Replace(configYAML, "v1alpha2", "v1alpha1", 1)}},
		{"beside an object without a name", []string{"a.yaml", podYAML + "---\napiVersion: batch/v1\nkind: Job\nmetadata: {generateName: x-}\n---\n" + configYAML}},
		{"beside their namesakes", []string{"a.yaml", podYAML + "---\n" + configYAML + "---\n" + strings.Replace(podYAML, "shop", "other", 1) + "---\n" + strings.Replace(configYAML, "openservicemesh", "flomesh", 1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, err := NewManifests(folder(t, tt.files...))
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Lookup(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			if name := nameOf(t, got.Pod); name != "Pod shop/web" {
				t.Errorf("pod is %s", name)
			}
			if name := nameOf(t, got.Config); name != "MeshConfig osm-system/osm-mesh-config" || got.ConfigAbsent != "" {
				t.Errorf("config is %s, %q", name, got.ConfigAbsent)
			}
		})
	}
}

func nameOf(t *testing.T, object []byte) string {
	t.Helper()
	var h head
	if err := json.Unmarshal(object, &h); err != nil {
		t.Fatalf("%s: %v", object, err)
	}
	return fmt.Sprintf("%s %s/%s", h.Kind, h.Metadata.Namespace, h.Metadata.Name)
}

func TestAPodWithoutANamespaceIsInDefaultAndKeepsTheRest(t *testing.T) {
	t.Parallel()
	m, err := NewManifests(write(t, t.TempDir(), "pod.yaml", strings.Replace(podYAML, "  namespace: shop\n", "", 1)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := m.Lookup(t.Context(), Request{ID: pod.ID{Namespace: "default", Name: "web"}, Config: request.Config})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default"},"spec":{"securityContext":{"runAsUser":9007199254740993}}}`
	if string(got.Pod) != want {
		t.Errorf("got  %s\nwant %s", got.Pod, want)
	}
}

func TestManifestsSayWhyThereIsNoConfig(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, config, want string }{
		{"it is not there", "", "MeshConfig osm-system/osm-mesh-config is not in "},
		{"it is in another namespace", strings.Replace(configYAML, "osm-system", "kube-system", 1), "MeshConfig osm-system/osm-mesh-config is not in "},
		{"it is of a version nobody knows", strings.Replace(configYAML, "v1alpha2", "v9", 1), "all.yaml, document 2 is of version v9, not v1alpha2 or v1alpha1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, err := NewManifests(folder(t, "all.yaml", podYAML+"---\n"+tt.config))
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Lookup(t.Context(), request)
			if err != nil || got.Config != nil || !strings.Contains(got.ConfigAbsent, tt.want) {
				t.Errorf("got %s, %q, %v", got.Config, got.ConfigAbsent, err)
			}
		})
	}
}

func TestAPodThatIsNotInTheManifestsIsNotFoundAndTheErrorNamesThoseThatAre(t *testing.T) {
	t.Parallel()
	other := func(names ...string) string {
		var docs []string
		for _, n := range names {
			docs = append(docs, strings.Replace(podYAML, "name: web", "name: "+n, 1))
		}
		return strings.Join(docs, "---\n")
	}
	tests := []struct{ name, content, want string }{
		{"none", configYAML, "no such pod; it holds no pod"},
		{"two", other("b", "a"), "no such pod; it holds shop/a, shop/b"},
		{"five", other("e", "d", "c", "b", "a"), "; it holds shop/a, shop/b, shop/c, shop/d, shop/e"},
		{"seven", other("g", "f", "e", "d", "c", "b", "a"), "; it holds shop/a, shop/b, shop/c, shop/d, shop/e and 2 more"},
		{"one of a version that is no pod's", strings.Replace(podYAML, "v1", "v2", 1), "no such pod"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := write(t, t.TempDir(), "all.yaml", tt.content)
			m, err := NewManifests(path)
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.Lookup(t.Context(), request)
			wantError(t, err, "find pod shop/web in "+path+": ", tt.want)
			if !errors.Is(err, ErrNotFound) {
				t.Error("it is not ErrNotFound")
			}
		})
	}
}

func TestNewManifestsFailsOn(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		files []string
		words []string
	}{
		{"an empty file", []string{"a.yaml", ""}, []string{"holds no object"}},
		{"a file of comments", []string{"a.yaml", "# nothing\n---\n# here\n"}, []string{"holds no object"}},
		{"an empty folder", nil, []string{"holds no .yaml, .yml or .json file"}},
		{"a folder of other files", []string{"a.txt", podYAML}, []string{"holds no .yaml, .yml or .json file"}},
		{"broken YAML", []string{"a.yaml", podYAML + "---\na: [\n"}, []string{"parse ", "a.yaml, document 2: ", "yaml: "}},
		{"a field that is there twice", []string{"a.yaml", podYAML + "kind: Pod\n"}, []string{"a.yaml, document 1: ", `"kind" already set`}},
		{"a text", []string{"a.yaml", "hello\n"}, []string{"a.yaml, document 1: not a Kubernetes manifest: "}},
		{"a list", []string{"a.yaml", "- a\n"}, []string{"a.yaml, document 1: not a Kubernetes manifest: "}},
		{"values of a chart", []string{"a.yaml", "image: web\n"}, []string{"document 1: not a Kubernetes manifest: it lacks apiVersion or kind"}},
		{"a name that is a number", []string{"a.yaml", strings.Replace(podYAML, "name: web", "name: 1", 1)}, []string{"document 1: not a Kubernetes manifest: ", "etadata.Name"}},
		{"a pod without a name", []string{"a.yaml", "apiVersion: v1\nkind: Pod\n"}, []string{"document 1: the Pod has no metadata.name"}},
		{"a bad item of a List", []string{"a.yaml", "apiVersion: v1\nkind: List\nitems:\n" + indent(podYAML) + "- {}\n"}, []string{"document 1, item 2: not a"}},
		{"a pod that is in two files", []string{"a.yaml", podYAML, "b.yaml", podYAML}, []string{"b.yaml, document 1: Pod shop/web is in ", "a.yaml, document 1 already"}},
		{"a configuration in two versions", []string{"a.yaml", configYAML + "---\n" + strings.Replace(configYAML, "v1alpha2", "v1alpha1", 1)}, []string{"document 2: MeshConfig osm-system/osm-mesh-config is in "}},
		{"metadata spelled in two ways", []string{"a.json", `{"apiVersion":"v1","kind":"Pod","metadata":null,"Metadata":{"name":"a"}}`}, []string{"metadata"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := NewManifests(folder(t, tt.files...))
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tt.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestNewManifestsFailsOnWhatItCannotRead(t *testing.T) {
	t.Parallel()
	gone := filepath.Join(t.TempDir(), "gone")
	_, err := NewManifests(gone)
	wantError(t, err, "read manifests: ", gone, "no such file")

	dangling := folder(t)
	if err := os.Symlink(gone, filepath.Join(dangling, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	_, err = NewManifests(dangling)
	wantError(t, err, "read manifests: ", "a.yaml", "no such file")

	if os.Getuid() == 0 {
		return // root reads everything
	}
	locked := folder(t)
	if err := os.Chmod(locked, 0); err != nil {
		t.Fatal(err)
	}
	_, err = NewManifests(locked)
	wantError(t, err, "read manifests: ", locked, "permission denied")
}

func TestASubfolderIsNotRead(t *testing.T) {
	t.Parallel()
	dir := folder(t, "a.yaml", podYAML)
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := NewManifests(dir)
	if err != nil || !slices.Equal(m.Pods(), []string{"shop/web"}) {
		t.Errorf("got %v, %v", m, err)
	}
}

func TestDocumentsAreSplitAtMarkersOnly(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   string
		want []string
	}{
		{"", []string{""}},
		{"a\n", []string{"a\n"}},
		{"---\na\n", []string{"---\na\n"}},
		{"---", []string{"---"}},
		{"a\n---\nb", []string{"a\n", "---\nb"}},
		{"a\n---", []string{"a\n", "---"}},
		{"# a\n\n---\nb\n", []string{"---\nb\n"}},
		{"--- {a: b}\n--- # c\n", []string{"--- {a: b}\n", "--- # c\n"}},
		{"a: |\n  ---\n----\n---b\n", []string{"a: |\n  ---\n----\n---b\n"}},
	}
	for _, tt := range tests {
		var got []string
		for _, d := range documents([]byte(tt.in)) {
			got = append(got, string(d))
		}
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q is split into %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzManifests(f *testing.F) {
	f.Add([]byte(podYAML + "---\n" + configYAML))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n" + indent(podYAML) + indent(configYAML)))
	f.Add([]byte(podJSON))
	f.Add([]byte(`{"apiVersion":"v1","kind":"Pod","metadata":null,"Metadata":{"name":"a"}}`))
	f.Add([]byte("%YAML 1.1\n---\n&a [*a]\n--- !!binary x\n? 1\n: 2\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &Manifests{objects: map[key]manifest{}}
		if m.read("fuzz.yaml", data) != nil {
			return
		}
		for _, p := range m.Pods() {
			for k, object := range m.objects {
				if k.kind == "Pod" && k.namespace+"/"+k.name == p && !json.Valid(object.json) {
					t.Errorf("%s is no JSON: %q", p, object.json)
				}
			}
			if ns, name, _ := strings.Cut(p, "/"); !strings.Contains(name, "/") && m.objects[key{kind: "Pod", namespace: ns, name: name}].version == "v1" {
				if _, err := m.Lookup(t.Context(), Request{ID: pod.ID{Namespace: ns, Name: name}}); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
