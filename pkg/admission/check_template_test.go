package admission_test

import (
	"encoding/json"
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

// checkTemplate checks a workload as the server does, with a mesh configuration that is known.
func checkTemplate(t testing.TB, dialect string, workload []byte, change func(*decision.Input)) []string {
	t.Helper()
	data, err := admission.PodOf(workload)
	if err != nil {
		t.Fatal(err)
	}
	in := decision.Input{ID: pod.ID{Namespace: "shop", Name: "web"}, Pod: data, ConfigAbsent: "it does not exist"}
	if change != nil {
		change(&in)
	}
	v := admission.CheckTemplate(optionsOf(t, dialect), in)
	if v.Denial != "" {
		t.Errorf("a template is denied: %s", v.Denial)
	}
	return v.Warnings
}

func deployment(metadata, spec string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"namespace":"shop","name":"web"},
		"spec":{"selector":{},"template":{"metadata":{"creationTimestamp":null%s},"spec":{%s}}}}`, metadata, spec)
}

func TestWhatATemplateIsWarnedOf(t *testing.T) {
	t.Parallel()
	const (
		plain    = `"containers":[{"name":"app"}]`
		proxyUID = `"containers":[{"name":"app","securityContext":{"runAsUser":1500}}]`
		istioUID = `"containers":[{"name":"app","securityContext":{"runAsUser":1337}}]`
		port     = `"containers":[{"name":"app","ports":[{"containerPort":15001},{"containerPort":15001,"protocol":"UDP"}]}]`
		asks     = `,"annotations":{"openservicemesh.io/sidecar-injection":"Enabled"}`
		declines = `,"annotations":{"openservicemesh.io/sidecar-injection":"disabled","openservicemesh.io/inbound-port-exclusion-list":"0"}`
		istioBad = `,"annotations":{"traffic.sidecar.istio.io/excludeOutboundPorts":"x"}`
		istioPos = `,"labels":{"sidecar.istio.io/inject":"true"}`
		istioNeg = `,"labels":{"sidecar.istio.io/inject":"false"},"annotations":{"traffic.sidecar.istio.io/excludeOutboundPorts":"x"}`
		bypass   = `Deployment web: its pods would not start: container "app" runs as UID %d, which is the proxy's: all its traffic would bypass the mesh; give it another runAsUser`
	)
	malformed := func(in *decision.Input) { in.Config, in.ConfigAbsent = []byte(`{"kind":"X"}`), "" }
	for name, c := range map[string]struct {
		mesh, metadata, spec string
		change               func(*decision.Input)
		want                 string
	}{
		"nothing of the mesh's":                 {"osm", "", plain, nil, ""},
		"a malformed annotation":                {"osm", badPort, plain, nil, "Deployment web: its pods would not start if the mesh injects its sidecar: " + because},
		"one of detour's":                       {"osm", `,"annotations":{"detour.io/redirect-after-proxy-start":"soon"}`, plain, nil, `Deployment web: its pods would not start if the mesh injects its sidecar: detour.io/redirect-after-proxy-start: "soon" is neither true nor false`},
		"one of another mesh's":                 {"fsm", badPort, plain, nil, ""},
		"and a configuration that is, too":      {"osm", badPort, plain, malformed, "Deployment web: its pods would not start if the mesh injects its sidecar: " + because},
		"one that the mesh does not know":       {"osm", `,"annotations":{"openservicemesh.io/outbound-ip-range-inclusion-list":"10.0.0.0/8"}`, plain, nil, "Deployment web: openservicemesh.io/outbound-ip-range-inclusion-list is set, but mesh osm knows no such thing: ignored"},
		"it declines the sidecar":               {"osm", declines, plain, nil, ""},
		"the proxy's user":                      {"osm", asks, proxyUID, nil, fmt.Sprintf(bypass, 1500)},
		"of a pod that may not be meshed":       {"osm", "", proxyUID, nil, ""},
		"of one whose configuration is unknown": {"osm", asks, proxyUID, func(in *decision.Input) { in.ConfigAbsent = "" }, ""},
		"with the sidecar in the template":      {"osm", "", strings.TrimSuffix(proxyUID, "]") + "," + sidecar + "]", nil, fmt.Sprintf(bypass, 1500)},
		"the proxy's port":                      {"osm", asks, port, nil, `Deployment web: container "app" declares port 15001, which is the proxy's: only one of them can listen`},
		"a malformed configuration":             {"osm", asks, plain, malformed, `Deployment web: its pods would not start: MeshConfig osm-system/osm-mesh-config: kind: got "X", want "MeshConfig"`},
		"of a pod without the mesh":             {"osm", "", plain, malformed, ""},
		"in the host's network":                 {"osm", badPort, `"hostNetwork":true,` + plain, nil, ""},
		"in an excluded namespace":              {"osm", badPort, plain, func(in *decision.Input) { in.ID.Namespace = "osm-system" }, ""},
		"istio's malformed annotation":          {"istio", istioBad, plain, nil, `Deployment web: its pods would not start if the mesh injects its sidecar: traffic.sidecar.istio.io/excludeOutboundPorts: entry 1 "x": a port is 1 to 65535`},
		"istio's proxy's user":                  {"istio", istioPos, istioUID, nil, fmt.Sprintf(bypass, 1337)},
		"one that is not":                       {"istio", istioPos, proxyUID, nil, ""}, // and nothing of families: the sidecar's variables are not known
		"it declines istio's sidecar":           {"istio", istioNeg, istioUID, nil, ""},
		"a gateway that istio completes":        {"istio", istioPos, `"containers":[{"name":"istio-proxy","image":"auto"}]`, nil, ""},
		"no container":                          {"osm", "", `"containers":[]`, nil, "the template of shop/web can't be read: decode Pod: it lacks a container"},
	} {
		if got := strings.Join(checkTemplate(t, c.mesh, deployment(c.metadata, c.spec), c.change), "\n"); got != c.want {
			t.Errorf("%s: %s\nwant %s", name, got, c.want)
		}
	}
}

func TestTheTemplateOfEachWorkload(t *testing.T) {
	t.Parallel()
	const template = `{"template":{"metadata":{"labels":{"app":"web"}` + badPort + `},"spec":{"containers":[{"name":"app"}]}}}`
	for kind, spec := range map[string]string{
		"Deployment": template, "StatefulSet": template, "DaemonSet": template, "ReplicaSet": template, "Job": template,
		"CronJob": `{"schedule":"* * * * *","jobTemplate":{"metadata":{"labels":{}},"spec":` + template + `}}`,
	} {
		workload := func(owners string) []byte {
			return fmt.Appendf(nil, `{"apiVersion":"x/v1","kind":%q,"metadata":{"namespace":"shop","name":"web"%s},"spec":%s}`, kind, owners, spec)
		}
		want := kind + " web: its pods would not start if the mesh injects its sidecar: " + because
		if got := checkTemplate(t, "osm", workload(`,"ownerReferences":[{"kind":"App","name":"x"}]`), nil); !slices.Equal(got, []string{want}) {
			t.Errorf("%q, want %q", got, want)
		}
		data, err := admission.PodOf(workload(""))
		if p, parsed := pod.Parse(data); err != nil || parsed != nil || p.String() != "shop/web" || p.Labels["app"] != "web" {
			t.Errorf("%s: %s: %v %v", kind, data, err, parsed)
		}
		if data, err := admission.PodOf(workload(`,"ownerReferences":[{"kind":"App","name":"x","controller":true}]`)); data != nil || err != nil {
			t.Errorf("%s with a controller: %s %v", kind, data, err)
		}
	}
	for _, other := range []string{"", "[", "null", `{"kind":"Pod"}`, `{"kind":"Deployment","spec":{"template":[]}}`} {
		if data, err := admission.PodOf([]byte(other)); err == nil {
			t.Errorf("%s: %s", other, data)
		}
	}
}

// The net conf may name the annotations of a mesh that no row fits.
func TestATemplateAsksForTheSidecarByTheNetConfsAnnotations(t *testing.T) {
	t.Parallel()
	o := optionsOf(t, "osm")
	var err error
	if o.Dialect, err = o.Dialect.With(mesh.Override{AnnotationPrefix: "mesh.example/"}); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]int{"enabled": 1, "disabled": 0} {
		data, err := admission.PodOf(deployment(`,"annotations":{"mesh.example/sidecar-injection":"`+value+`"}`, `"containers":[{"name":"app","securityContext":{"runAsUser":1500}}]`))
		if err != nil {
			t.Fatal(err)
		}
		got := admission.CheckTemplate(o, decision.Input{ID: pod.ID{Namespace: "shop", Name: "web"}, Pod: data, ConfigAbsent: "it is gone"})
		if len(got.Warnings) != want {
			t.Errorf("%s: %q", value, got.Warnings)
		}
	}
}

// A template that does not say whether its pods are meshed is warned of nothing that ADD would not say of the meshed pod.
func TestTemplatesOfAllCasesGiveNoFalseAlarm(t *testing.T) {
	t.Parallel()
	with, without := 0, 0
	for _, c := range testcase.Load(t, "../..") {
		if c.Name == "osm/skip-no-sidecar" { // its annotations are malformed, and ADD does not read them
			continue
		}
		in := inputOf(t, c)
		truth := append(lines(c.Section("want.warnings")), strings.TrimPrefix(strings.TrimSpace(c.Section("want.error")), "pod shop/web: "))
		templates := map[bool][]byte{true: deploymentOf(t, in.Pod, "", ""), false: deploymentOf(t, in.Pod, optionsOf(t, c.Mesh).Dialect.Sidecar, optionsOf(t, c.Mesh).Dialect.InitContainer)}
		for injected, data := range templates {
			got := checkTemplate(t, c.Mesh, data, func(i *decision.Input) { i.Config, i.ConfigAbsent = in.Config, in.ConfigAbsent })
			for _, text := range got {
				_, after, _ := strings.Cut(text, ": ")
				after = strings.TrimPrefix(after, "its pods would not start: ")
				after = strings.TrimPrefix(after, "its pods would not start if the mesh injects its sidecar: ")
				if !slices.Contains(truth, after) {
					t.Errorf("%s: injected %v: %q is none of %q", c.Name, injected, text, truth)
				}
			}
			if injected && c.Section("want.error") != "" && len(got) != 1 {
				t.Errorf("%s: the injected template is warned of %q, ADD says %s", c.Name, got, c.Section("want.error"))
			}
			if injected {
				with += len(got)
			} else {
				without += len(got)
			}
		}
	}
	if with < 40 || without < 20 {
		t.Errorf("only %d and %d warnings", with, without)
	}
}

// deploymentOf makes a Deployment of a pod, less the containers of these names.
func deploymentOf(t testing.TB, data []byte, less ...string) []byte {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal(data, &p); err != nil {
		t.Fatal(err)
	}
	spec := p["spec"].(map[string]any)
	for _, list := range []string{"initContainers", "containers"} {
		containers, _ := spec[list].([]any)
		spec[list] = slices.DeleteFunc(containers, func(c any) bool { return slices.Contains(less, c.(map[string]any)["name"].(string)) })
	}
	out, err := json.Marshal(map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"namespace": "shop", "name": "web"},
		"spec": map[string]any{"template": map[string]any{"metadata": p["metadata"], "spec": spec}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
