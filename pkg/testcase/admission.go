package testcase

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/admission"
)

// Admitted is one row of testdata/admission: a pod as admission sees it, and what admission has to make of it.
type Admitted struct{ Case }

// WantOf is the section with what a change makes of the pod: the fields of its spec that are not as before.
func WantOf(c admission.Change) string { return "want." + string(c) + ".yaml" }

// LoadAdmitted reads all rows; root is the path to the repository's top folder.
func LoadAdmitted(t testing.TB, root string) []Admitted {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "testdata/admission/*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no rows in %s/testdata/admission: %v", root, err)
	}
	wants := []string{"want.warnings", WantOf(admission.RemoveInit), WantOf(admission.NativeSidecar), WantOf(admission.RestrictSidecar)}
	var rows []Admitted
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatalf("read row: %v", err)
		}
		row := Admitted{Case{Name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, archive: archive, wants: wants}}
		for _, f := range archive.Files {
			if !slices.Contains(slices.Concat([]string{"netconf.json", "restricted", "pod.yaml"}, wants), f.Name) {
				t.Fatalf("row %s: there is no section %q", row.Name, f.Name)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// NetConf returns the row's net conf, for netconf.Parse, which imports the packages that this one serves. Its pod is in namespace.
func (a Admitted) NetConf(t testing.TB, namespace string) []byte {
	t.Helper()
	var fields map[string]any
	text := strings.ReplaceAll(a.Section("netconf.json"), `"shop"`, `"`+namespace+`"`)
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatalf("row %s: netconf.json: %v", a.Name, err)
	}
	fields["manifests"] = "/unused"
	data, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// OnlyMesh reports whether the net conf says nothing but the mesh, which is all that the policies of deploy/admission can know.
func (a Admitted) OnlyMesh(t testing.TB) bool {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(a.Section("netconf.json")), &fields); err != nil {
		t.Fatalf("row %s: netconf.json: %v", a.Name, err)
	}
	return len(fields) == 1
}

// PodJSON returns the row's pod.
func (a Admitted) PodJSON(t testing.TB) []byte {
	t.Helper()
	data, err := yaml.YAMLToJSONStrict([]byte(a.Section("pod.yaml")))
	if err != nil {
		t.Fatalf("row %s: pod.yaml: %v", a.Name, err)
	}
	return data
}

// Restricted reports whether a namespace that has all labels and enforces the Pod Security Standard restricted must take the pod.
func (a Admitted) Restricted() bool { return a.Section("restricted") != "" }
