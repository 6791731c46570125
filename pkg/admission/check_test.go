package admission_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
)

func optionsOf(t testing.TB, name string) decision.Options {
	t.Helper()
	d, ok := mesh.Find(name)
	if !ok {
		t.Fatalf("no mesh %s", name)
	}
	return decision.Options{Dialect: d, ExcludeNamespaces: decision.DefaultExclusions(d)}
}

func inputOf(t testing.TB, c testcase.Case) decision.Input {
	t.Helper()
	request, objects := c.Objects(t)
	return decision.Input{ID: request.ID, Pod: objects.Pod, Config: objects.Config, ConfigAbsent: objects.ConfigAbsent}
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		out = append(out, strings.TrimSuffix(line, "\n"))
	}
	return out
}

// unconditional takes the condition off a warning that depends on the pod's addresses.
func unconditional(warning string) string {
	if rest, ok := strings.CutPrefix(warning, "if the pod gets "); ok {
		_, warning, _ = strings.Cut(rest, ": ")
	}
	return warning
}

// Each case of testdata/cases says what ADD does.
func TestEveryCaseIsCheckedAsADDDecides(t *testing.T) {
	t.Parallel()
	refused, warned := 0, 0
	for _, c := range testcase.Load(t, "../..") {
		o, in := optionsOf(t, c.Mesh), inputOf(t, c)
		denial, warnings := strings.TrimSpace(c.Section("want.error")), lines(c.Section("want.warnings"))
		if in.ConfigAbsent != "" && denial == "" && c.Section("want.skip") == "" {
			warnings = append(warnings, in.ConfigAbsent+": the mesh's defaults hold")
		}
		refused, warned = refused+min(len(denial), 1), warned+min(len(warnings), 1)

		got := admission.CheckPod(o, in)
		if got.Denial != denial {
			t.Errorf("%s: denied with %q, want %q", c.Name, got.Denial, denial)
		}
		for _, w := range warnings {
			if !slices.ContainsFunc(got.Warnings, func(g string) bool { return unconditional(g) == w }) {
				t.Errorf("%s: %q lacks %q", c.Name, got.Warnings, w)
			}
		}
		for _, g := range got.Warnings {
			if unconditional(g) == g && !slices.Contains(warnings, g) {
				t.Errorf("%s: ADD does not warn of %q", c.Name, g)
			}
		}

		in.Addresses = c.Addresses(t)
		if got := admission.CheckPod(o, in); got.Denial != denial || !slices.Equal(got.Warnings, warnings) {
			t.Errorf("%s: with addresses %q and %q, want %q and %q", c.Name, got.Denial, got.Warnings, denial, warnings)
		}
	}
	if refused < 30 || warned < 10 {
		t.Errorf("only %d cases are refused, %d have warnings", refused, warned)
	}
}

const (
	meta    = `"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"web"%s}`
	badPort = `,"annotations":{"openservicemesh.io/inbound-port-exclusion-list":"0"}`
	because = `openservicemesh.io/inbound-port-exclusion-list: entry 1 "0": a port is 1 to 65535`
	sidecar = `{"name":"envoy","securityContext":{"runAsUser":1500}}`
)

func podJSON(metadata, spec string) []byte {
	return fmt.Appendf(nil, "{"+meta+`,"spec":{%s}}`, metadata, spec)
}

func TestWhatOfAPodCounts(t *testing.T) {
	t.Parallel()
	const meshed = `"containers":[{"name":"app"},` + sidecar + `]`
	const unknown = "pod shop/web: the configuration of its mesh is not known now: only what the pod itself says was checked"
	for name, c := range map[string]struct {
		in      decision.Input
		denial  string
		warning string
	}{
		"a malformed annotation":       {decision.Input{Pod: podJSON(badPort, meshed)}, "pod shop/web: " + because, ""},
		"of a pod without the mesh":    {decision.Input{Pod: podJSON(badPort, `"containers":[{"name":"app"}]`)}, "", ""},
		"of one in the host's network": {decision.Input{Pod: podJSON(badPort, `"hostNetwork":true,`+meshed)}, "", ""},
		"of one with a UID":            {decision.Input{ID: pod.ID{UID: "of the request"}, Pod: podJSON(badPort, meshed)}, "pod shop/web: " + because, ""},
		"in an excluded namespace":     {decision.Input{ID: pod.ID{Namespace: "osm-system"}, Pod: podJSON(badPort, meshed)}, "", ""},
		"no configuration":             {decision.Input{Pod: podJSON("", meshed), ConfigAbsent: "it is gone"}, "", "it is gone: the mesh's defaults hold"},
		"a malformed configuration": {
			decision.Input{Pod: podJSON("", meshed), Config: []byte(`{"kind":"MeshConfig","spec":{"traffic":{"outboundPortExclusionList":[0]}}}`)},
			`MeshConfig osm-system/osm-mesh-config: spec.traffic.outboundPortExclusionList: entry 1 "0": a port is 1 to 65535`, "",
		},
		"an unknown configuration":                            {decision.Input{Pod: podJSON("", meshed)}, "", unknown},
		"an unknown configuration and a malformed annotation": {decision.Input{Pod: podJSON(badPort, meshed)}, "pod shop/web: " + because, ""},
		"an unknown configuration of a pod without the mesh":  {decision.Input{Pod: podJSON("", `"containers":[{"name":"app"}]`)}, "", ""},
		"no pod": {decision.Input{Pod: []byte("[")}, "pod shop/web: decode Pod: unexpected end of JSON input", ""},
	} {
		if c.in.ID.Namespace == "" {
			c.in.ID.Namespace, c.in.ID.Name = "shop", "web"
		}
		got := admission.CheckPod(optionsOf(t, "osm"), c.in)
		if got.Denial != c.denial || strings.Join(got.Warnings, "\n") != c.warning {
			t.Errorf("%s: %q and %q, want %q and %q", name, got.Denial, got.Warnings, c.denial, c.warning)
		}
	}
}

func TestAMeshWithoutAConfigurationIsKnown(t *testing.T) {
	t.Parallel()
	o := optionsOf(t, "osm")
	o.Dialect.Config = mesh.ConfigRef{}
	in := decision.Input{ID: pod.ID{Namespace: "shop", Name: "web"}, Pod: podJSON("", `"containers":[{"name":"app"},`+sidecar+`]`)}
	if got := admission.CheckPod(o, in); got.Denial != "" || got.Warnings != nil {
		t.Errorf("%q and %q", got.Denial, got.Warnings)
	}
}

// The API server shortens all warnings if there are too many.
func TestAPodWith100InitContainersHasFewWarnings(t *testing.T) {
	t.Parallel()
	var inits []string
	for i := range 100 {
		inits = append(inits, fmt.Sprintf(`{"name":"init-%d"}`, i))
	}
	data := podJSON(`,"annotations":{"detour.io/direct-init-containers":"true"}`, `"initContainers":[`+strings.Join(inits, ",")+`],"containers":[{"name":"app"},`+sidecar+`]`)
	got := admission.CheckPod(optionsOf(t, "osm"), decision.Input{ID: pod.ID{Namespace: "shop", Name: "web"}, Pod: data, ConfigAbsent: "it is gone"})
	if n := len(got.Warnings); n != 11 || got.Warnings[10] != "91 more warnings: the plugin's log has them when the pod starts" {
		t.Errorf("%d warnings, the last is %q", n, got.Warnings[n-1])
	}
	if n := len(strings.Join(got.Warnings, "")); n > 4096 {
		t.Errorf("%d bytes", n)
	}
}
