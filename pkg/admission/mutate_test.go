package admission_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
)

const readyLabel = pod.ReadyLabel

var all = []admission.Change{admission.RemoveInit, admission.NativeSidecar, admission.RestrictSidecar}

// change makes the changes one after the other, each twice: the second time, nothing may be left to do.
func change(t *testing.T, o decision.Options, pod []byte, changes ...admission.Change) (changed []byte, warnings []string) {
	t.Helper()
	for _, c := range changes {
		ops, warned, err := admission.Mutate(o, c, "shop", pod)
		if err != nil {
			t.Fatal(err)
		}
		warnings = append(warnings, warned...)
		pod = apply(t, ops, pod)
		if again, _, err := admission.Mutate(o, c, "shop", pod); err != nil || len(again) > 0 {
			t.Errorf("%s, the second time: %v, %v", c, again, err)
		}
	}
	return pod, warnings
}

// apply applies a patch as the API server does.
func apply(t *testing.T, ops []admission.Op, pod []byte) []byte {
	t.Helper()
	if len(ops) == 0 {
		return pod
	}
	text, err := json.Marshal(ops)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	changed, err := patch.Apply(pod)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return changed
}

// decode reads JSON and keeps its numbers as they are written.
func decode(t *testing.T, data []byte) (v map[string]any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func encode(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEveryCaseGivesItsPod(t *testing.T) {
	for _, row := range testcase.LoadAdmitted(t, "../..") {
		t.Run(row.Name, func(t *testing.T) {
			t.Parallel()
			pod := row.PodJSON(t)
			before := decode(t, pod)
			got := map[string]string{"want.warnings": ""}
			for _, c := range all {
				changed, warnings := change(t, options(t, row), pod, c)
				after := decode(t, changed)
				got[testcase.WantOf(c)] = difference(t, before["spec"].(map[string]any), after["spec"].(map[string]any))
				got["want.warnings"] += strings.Join(append(warnings, ""), "\n")
				after["spec"] = before["spec"]
				if encode(t, after) != encode(t, before) {
					t.Errorf("%s changed what is not the spec: %s", c, changed)
				}
			}
			row.Want(t, got)
		})
	}
}

// difference is YAML of the fields that have changed. No field may be gone.
func difference(t *testing.T, before, after map[string]any) string {
	t.Helper()
	for field := range before {
		if _, ok := after[field]; !ok {
			t.Errorf("field %s is gone", field)
		}
	}
	changed := maps.Clone(after)
	maps.DeleteFunc(changed, func(field string, value any) bool {
		return before[field] != nil && encode(t, value) == encode(t, before[field])
	})
	if len(changed) == 0 {
		return ""
	}
	text, err := yaml.Marshal(changed)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheOrderOfTheChangesDoesNotMatter(t *testing.T) {
	orders := [][]admission.Change{
		{all[0], all[1], all[2]}, {all[0], all[2], all[1]}, {all[1], all[0], all[2]}, {all[1], all[2], all[0]}, {all[2], all[0], all[1]}, {all[2], all[1], all[0]},
		{all[1], all[2]}, {all[2], all[1]}, // native-sidecar includes remove-init
	}
	for _, row := range testcase.LoadAdmitted(t, "../..") {
		for _, order := range orders {
			o, pod := options(t, row), row.PodJSON(t)
			want, _ := change(t, o, pod, all...)
			if got, _ := change(t, o, pod, order...); !jsonpatch.Equal(got, want) {
				t.Errorf("%s: %s gives\n%s\nand not\n%s", row.Name, order, got, want)
			}
		}
	}
}

func TestAPodWithManyInitContainers(t *testing.T) {
	o := decision.Options{Dialect: find(t, "osm")}
	var inits []string
	for i := range 100 {
		inits = append(inits, fmt.Sprintf(`{"name":"init-%d"}`, i))
	}
	const osmInit = `{"name":"osm-init","securityContext":{"privileged":true}}`
	pod := func(inits []string, more string) []byte {
		return fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","spec":{%s"initContainers":[%s],"containers":[{"name":"app"}%s]}}`,
			more, strings.Join(inits, ","), `,{"name":"envoy","securityContext":{"runAsUser":1500}}`)
	}
	for at := range len(inits) + 1 {
		got, _ := change(t, o, pod(slices.Insert(slices.Clone(inits), at, osmInit), ""), admission.RemoveInit)
		if want := pod(inits, `"nodeSelector":{"detour.io/ready":"true"},`); !jsonpatch.Equal(got, want) {
			t.Fatalf("osm-init at %d: %s", at, got)
		}
	}
}

func TestBadInput(t *testing.T) {
	o := decision.Options{Dialect: find(t, "osm")}
	const pod = `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"envoy","securityContext":{"runAsUser":1500%s}}]}}`
	for _, tt := range []struct{ change, pod, want string }{
		{"remove-init", "", "decode Pod: unexpected end of JSON input"},
		{"remove-init", "null", `decode Pod: got "" of "", want "Pod" of "v1"`},
		{"remove-init", `{"apiVersion":"apps/v1","kind":"Deployment"}`, `decode Pod: got "Deployment" of "apps/v1", want "Pod" of "v1"`},
		{"remove-init", `{"apiVersion":"v1","kind":"Pod","spec":{}}`, "decode Pod: it lacks a container"},
		{"restrict-sidecar", fmt.Sprintf(pod, `,"runAsNonRoot":"yes"`), "decode Pod: json: cannot unmarshal string into Go struct field"},
		{"no-sidecar", fmt.Sprintf(pod, ""), `admission: there is no change "no-sidecar"`},
	} {
		ops, warnings, err := admission.Mutate(o, admission.Change(tt.change), "shop", []byte(tt.pod))
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || ops != nil || warnings != nil {
			t.Errorf("%s of %s: %v, %q, %v, want %s", tt.change, tt.pod, ops, warnings, err, tt.want)
		}
	}
}

func find(t testing.TB, name string) mesh.Dialect {
	t.Helper()
	d, ok := mesh.Find(name)
	if !ok {
		t.Fatalf("there is no mesh %s", name)
	}
	return d
}

// FuzzMutate gives Mutate anything, and then the same as the API server would pass it on: what comes out is a pod that differs where the
// changes are, and nowhere else.
func FuzzMutate(f *testing.F) {
	for i, row := range testcase.LoadAdmitted(f, "../..") {
		f.Add(row.PodJSON(f), uint8(i))
	}
	f.Fuzz(func(t *testing.T, data []byte, which uint8) {
		d := find(t, mesh.Names()[int(which)%len(mesh.Names())])
		for _, c := range all {
			_, _, _ = admission.Mutate(decision.Options{Dialect: d}, c, "shop", data)
		}
		var pod corev1.Pod
		if json.Unmarshal(data, &pod) == nil {
			checkForeign(t, d, pod)
		}
	})
}

// Pods of all containers that matter, in any order.
func TestPodsOfAnyContainers(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var pod corev1.Pod
		for _, name := range random.Perm(len(names))[:1+random.IntN(len(names))] {
			addContainer(&pod.Spec, names[name], random)
		}
		pod.Annotations = pick(random, nil, map[string]string{"sidecar.istio.io/status": "{}"})
		pod.Spec.NodeSelector = pick(random, nil, map[string]string{"disk": "ssd"}, map[string]string{readyLabel: "true"})
		checkForeign(t, find(t, pick(random, mesh.Names()...)), pod)
	}
}

var names = []string{"app", "warm", "envoy", "sidecar", "istio-proxy", "osm-init", "fsm-init", "istio-init", "istio-validation"}

func pick[T any](random *rand.Rand, choices ...T) T { return choices[random.IntN(len(choices))] }

func addContainer(spec *corev1.PodSpec, name string, random *rand.Rand) {
	user, always := int64(pick(random, 0, 1500)), corev1.ContainerRestartPolicyAlways
	context := &corev1.SecurityContext{
		RunAsUser:    pick(random, nil, &user),
		RunAsNonRoot: pick(random, nil, new(bool)),
		Capabilities: pick(random, nil, &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}}),
	}
	c := corev1.Container{Name: name, SecurityContext: pick(random, nil, context, context)}
	if random.IntN(2) == 0 {
		spec.Containers = append(spec.Containers, c)
		return
	}
	c.RestartPolicy = pick(random, nil, &always)
	spec.InitContainers = append(spec.InitContainers, c)
}

// checkForeign makes all changes, and compares what is not the mesh's.
func checkForeign(t *testing.T, d mesh.Dialect, before corev1.Pod) {
	t.Helper()
	before.Kind, before.APIVersion = "Pod", "v1"
	pod := []byte(encode(t, before))
	o := decision.Options{Dialect: d}
	if _, _, err := admission.Mutate(o, admission.RemoveInit, "shop", pod); err != nil || !uniqueNames(before.Spec) {
		return
	}
	changed, _ := change(t, o, pod, all...)
	var after corev1.Pod
	if err := json.Unmarshal(changed, &after); err != nil {
		t.Fatalf("%v: %s", err, changed)
	}
	if got, want := foreign(t, d, after), foreign(t, d, before); got != want {
		t.Errorf("with mesh %s\n%s became\n%s", d.Name, pod, changed)
	}
}

// uniqueNames reports whether no two containers have the same name, which the API server insists on after admission.
func uniqueNames(spec corev1.PodSpec) bool {
	seen := map[string]bool{}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if seen[c.Name] {
			return false
		}
		seen[c.Name] = true
	}
	return true
}

// foreign is the pod without the mesh's containers and without detour's label: what no change may touch.
func foreign(t *testing.T, d mesh.Dialect, p corev1.Pod) string {
	t.Helper()
	its := func(c corev1.Container) bool { return c.Name == d.Sidecar || c.Name == d.InitContainer }
	p.Spec.Containers = slices.DeleteFunc(slices.Clone(p.Spec.Containers), its)
	p.Spec.InitContainers = slices.DeleteFunc(slices.Clone(p.Spec.InitContainers), its)
	p.Spec.NodeSelector = maps.Clone(p.Spec.NodeSelector)
	maps.DeleteFunc(p.Spec.NodeSelector, func(key, _ string) bool { return key == readyLabel })
	return encode(t, p)
}

func options(t *testing.T, row testcase.Admitted) decision.Options {
	t.Helper()
	conf, err := netconf.Parse(row.NetConf(t, "shop"))
	if err != nil {
		t.Fatalf("row %s: %v", row.Name, err)
	}
	return conf.Options
}
