package admission_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// expressions are the CEL expressions of deploy/admission, by the file's name.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../deploy/admission/v1beta1/*-*.yaml")
	if err != nil || len(paths) != len(all) {
		t.Fatalf("policies: %q, %v", paths, err)
	}
	out := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var policy struct {
			Spec struct {
				Variables []struct{ Name, Expression string }
				Mutations []struct{ JSONPatch struct{ Expression string } }
			}
		}
		if err := yaml.Unmarshal(text, &policy); err != nil { // the first document
			t.Fatal(err)
		}
		var lines []string
		for _, v := range policy.Spec.Variables {
			lines = append(lines, v.Name+" = "+v.Expression)
		}
		for _, m := range policy.Spec.Mutations {
			lines = append(lines, m.JSONPatch.Expression)
		}
		out[strings.TrimSuffix(filepath.Base(path), ".yaml")] = strings.Join(lines, "\n")
	}
	return out
}

var (
	word   = regexp.MustCompile(`'([^']*)'`)
	number = regexp.MustCompile(`\b[0-9]{3,}\b`)
)

// The policies of deploy/admission can't read pkg/mesh. Whatever they say of a mesh stands in its table, and the other way round.
func TestThePoliciesSayOfTheMeshesWhatTheTableSays(t *testing.T) {
	table := map[string][]string{} // what each policy must name
	users := map[string]bool{}
	for _, name := range mesh.Names() {
		d := find(t, name)
		table["remove-init"] = append(table["remove-init"], d.Sidecar, d.InitContainer)
		table["native-sidecar"] = append(table["native-sidecar"], d.Sidecar, d.Validator)
		if d.BareSidecar {
			table["restrict-sidecar"] = append(table["restrict-sidecar"], d.Sidecar)
			users[fmt.Sprint(d.Proxy.UID)] = true
		}
	}
	for policy, text := range expressions(t) {
		var named, wanted []string
		for _, w := range word.FindAllStringSubmatch(text, -1) {
			if !slices.Contains(vocabulary, w[1]) && !read(w[1]) {
				named = append(named, w[1])
			}
		}
		for _, w := range table[policy] {
			if w != "" {
				wanted = append(wanted, w)
			}
		}
		if got, want := sorted(named), sorted(wanted); !slices.Equal(got, want) {
			t.Errorf("policy %s names %q, and the meshes' table has %q", policy, got, want)
		}
		if got, want := sorted(number.FindAllString(text, -1)), slices.Sorted(maps.Keys(users)); !slices.Equal(got, want) {
			t.Errorf("policy %s has the UIDs %q, and the meshes' table has %q", policy, got, want)
		}
	}
}

// read reports whether a mesh reads the annotations or labels of this name, or that begin with it.
func read(name string) bool {
	return strings.Contains(name, "/") && !strings.HasPrefix(name, "detour.io/") && slices.ContainsFunc(mesh.Names(), func(m string) bool {
		d, _ := mesh.Find(m)
		return d.Reads(name)
	})
}

func sorted(words []string) []string { return slices.Compact(slices.Sorted(slices.Values(words))) }

// vocabulary are the words of Kubernetes, of a JSON patch, and the values of annotations, arguments and variables.
var vocabulary = []string{
	"", "Always", "NET_ADMIN", "ALL", "RuntimeDefault", "drop", "type", "true", pod.ReadyLabel,
	"add", "remove", "move", "/spec/nodeSelector", "/spec/nodeSelector/", "/spec/initContainers", "/spec/initContainers/", "/spec/containers/",
	"/securityContext", "/allowPrivilegeEscalation", "/runAsNonRoot", "/capabilities", "/seccompProfile", "/restartPolicy",
	"sidecar-injection", "disabled", "no", "false", "NONE", "proxy", "DISABLE_ENVOY", "1", "t", "T", "TRUE", "True",
}
