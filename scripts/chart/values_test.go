//go:build chart

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/mesh"
)

// Each refusal is one line that says where and what.
func TestWrongValuesAreRefused(t *testing.T) {
	tests := map[string]string{
		"mesh: linkerd":                                  "at '/mesh': value must be one of 'osm', 'osm-v1', 'osm-edge', 'fsm', 'istio'",
		"{mesh: null}":                                   "missing property 'mesh'",
		"{}":                                             "at '/mesh': value must be one of 'osm', 'osm-v1', 'osm-edge', 'fsm', 'istio'",
		"{mesh: osm, backend: ebpf}":                     "at '/backend': value must be one of 'auto', 'iptables', 'nftables'",
		"{mesh: osm, repair: restart}":                   "at '/repair': value must be one of 'report', 'evict', 'in-place'",
		"{mesh: osm, admission: true}":                   "at '/admission': got boolean, want string",
		"{mesh: osm, admission: cel}":                    "at '/admission': value must be one of 'webhook', 'policies', 'none'",
		"{mesh: osm, apiFallback: 'false'}":              "at '/apiFallback': got string, want boolean",
		"{mesh: osm, taint: true}":                       "additional properties 'taint' not allowed",
		"{mesh: osm, image: {tag: 1.0}}":                 "at '/image/tag': got number, want string",
		"{mesh: osm, image: {tag: a b}}":                 "at '/image/tag': 'a b' does not match pattern",
		"{mesh: osm, image: {repository: 'a: b'}}":       "at '/image/repository': 'a: b' does not match pattern",
		"{mesh: osm, image: {digest: 0123}}":             "at '/image/digest': got number, want string",
		"{mesh: osm, image: {digest: sha256:0123}}":      "at '/image/digest': 'sha256:0123' does not match pattern",
		"{mesh: osm, image: {name: x}}":                  "at '/image': additional properties 'name' not allowed",
		"{mesh: osm, image: {pullSecrets: [a]}}":         "at '/image/pullSecrets/0': got string, want object",
		"{mesh: osm, netConf: {logfile: /x}}":            "at '/netConf': additional properties 'logfile' not allowed",
		"{mesh: osm, netConf: {mesh: fsm}}":              "at '/netConf': additional properties 'mesh' not allowed",
		"{mesh: osm, netConf: {backend: nftables}}":      "at '/netConf': additional properties 'backend' not allowed",
		"{mesh: osm, netConf: {proxy: {uid: -1}}}":       "at '/netConf/proxy/uid': minimum: got -1, want 0",
		"{mesh: osm, netConf: {timeout: 10}}":            "at '/netConf/timeout': got number, want string",
		"{mesh: osm, cni: {binDir: opt/cni/bin}}":        "at '/cni/binDir': 'opt/cni/bin' does not match pattern",
		"{mesh: osm, cni: {binDir: /opt/../bin}}":        "at '/cni/binDir': '/opt/../bin' does not match pattern",
		"{mesh: osm, uninstall: {timeout: ..s}}":         "at '/uninstall/timeout': '..s' does not match pattern",
		"{mesh: osm, tolerations: [{operater: Exists}]}": "at '/tolerations/0': additional properties 'operater' not allowed",
		"{mesh: osm, resources: {limit: {}}}":            "at '/resources': additional properties 'limit' not allowed",
		"{mesh: osm, webhook: {replicas: 0}}":            "at '/webhook/replicas': minimum: got 0, want 1",
		"{mesh: osm, uninstall: {timeout: 5}}":           "at '/uninstall/timeout': got number, want string",
	}
	for values, want := range tests {
		t.Run(values, func(t *testing.T) {
			t.Parallel()
			_, err := helm(t, "template", "detour", chart, "--values="+valuesFile(t, values))
			if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), "\n- ") != 1 {
				t.Errorf("%v\nwant %s", err, want)
			}
		})
	}
}

func TestPoliciesAreRefusedWhereTheClusterHasNone(t *testing.T) {
	_, err := helm(t, "template", "detour", chart, "--set=mesh=osm,admission=policies")
	if err == nil || !strings.Contains(err.Error(), "this cluster does not serve: set admission=webhook") {
		t.Error(err)
	}
}

func TestLintHasNothingToSay(t *testing.T) {
	for _, name := range mesh.Names() {
		if out, err := helm(t, "lint", "--strict", "--quiet", chart, "--set=mesh="+name); err != nil || out != "" {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}

// schema is what is read of a JSON schema.
type schema struct {
	Type                 any
	Enum                 []string
	Properties           map[string]*schema
	AdditionalProperties any
	Items                *schema
}

func readSchema(t *testing.T) *schema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// Only maps whose keys users choose have properties that the schema does not name.
func TestTheSchemaIsClosed(t *testing.T) {
	open := []string{
		"/nodeSelector", "/global",
		"/resources/requests", "/resources/limits", "/webhook/resources/requests", "/webhook/resources/limits",
	}
	var walk func(path string, s *schema)
	walk = func(path string, s *schema) {
		if s.Type == "object" && s.AdditionalProperties != false && !slices.Contains(open, path) {
			t.Errorf("%s takes any property", path)
		}
		for name, p := range s.Properties {
			walk(path+"/"+name, p)
		}
		if s.Items != nil {
			walk(path+"/*", s.Items)
		}
	}
	walk("", readSchema(t))
}

func TestTheSchemaKnowsWhatTheCodeKnows(t *testing.T) {
	s := readSchema(t)
	for name, want := range map[string][]string{
		"mesh":    mesh.Names(),
		"backend": backend.Choices,
		"repair":  {string(repair.Report), string(repair.Evict), string(repair.InPlace)},
	} {
		if got := s.Properties[name].Enum; !slices.Equal(got, want) {
			t.Errorf("%s: the schema has %q, the code %q", name, got, want)
		}
	}
	proxy := s.Properties["netConf"].Properties["proxy"]
	for name, of := range map[string]reflect.Type{
		"proxy":      reflect.TypeFor[mesh.Override](),
		"ports":      reflect.TypeFor[mesh.PortsOverride](),
		"meshConfig": reflect.TypeFor[mesh.ConfigRef](),
	} {
		properties := proxy.Properties
		if name != "proxy" {
			properties = proxy.Properties[name].Properties
		}
		for f := range of.Fields() {
			if properties[f.Tag.Get("json")] == nil {
				t.Errorf("the schema's %s has no %s", name, f.Tag.Get("json"))
			}
		}
		if len(properties) != of.NumField() {
			t.Errorf("the schema's %s has %d properties, the code %d", name, len(properties), of.NumField())
		}
	}
}

// The net conf's fields are those of the table in plugin/README.md, but for those that the agent sets and those with values of
// their own.
func TestTheSchemaHasEveryFieldOfTheNetConf(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "plugin/README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "| field | default | meaning |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(.*?)` \\|").FindAllStringSubmatch(table, -1) {
		if !slices.Contains([]string{"mesh", "backend", "agentSocket", "kubeconfig", "manifests", "stateDir"}, m[1]) {
			want = append(want, m[1])
		}
	}
	var got []string
	for name := range readSchema(t).Properties["netConf"].Properties {
		got = append(got, name)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) || len(want) < 8 {
		t.Errorf("the schema has %q, the page %q", got, want)
	}
}

// values.yaml has every value of the schema, each below a comment of one line.
func TestEveryValueIsExplained(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	groups := []string{"image", "webhook", "cni", "uninstall"}
	var want []string // lines
	for name, p := range readSchema(t).Properties {
		switch {
		case name == "global":
		case slices.Contains(groups, name):
			for inner := range p.Properties {
				want = append(want, "  "+inner+":")
			}
			fallthrough
		default:
			if _, ok := values[name]; !ok {
				t.Errorf("values.yaml has no %s", name)
			}
			if !slices.Contains(groups, name) {
				want = append(want, name+":")
			}
		}
	}
	for _, line := range want {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		if !regexp.MustCompile(`(?m)^` + indent + `# [^\n]*\.\n` + regexp.QuoteMeta(line)).Match(text) {
			t.Errorf("values.yaml does not explain %q in one line", strings.TrimSpace(line))
		}
	}
}
