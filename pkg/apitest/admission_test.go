//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/detour-cni/detour/pkg/admission"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

const readyLabel = pod.ReadyLabel

// The labels of deploy/admission.
const (
	removeInit      = "detour.io/remove-init=enabled"
	nativeSidecar   = "detour.io/native-sidecar=enabled"
	restrictSidecar = "detour.io/restrict-sidecar=enabled"
)

// Pods as their users write them.
const (
	app        = "containers: [{name: app, image: app}]"
	appAndInit = "initContainers: [{name: migrate, image: app}, {name: warm, image: app}], " + app
)

// shape says what containers a pod has: the init containers, "|" and the containers, each native sidecar with a "*".
func shape(pod object) string {
	var words []string
	for _, list := range []string{"initContainers", "containers"} {
		if list == "containers" {
			words = append(words, "|")
		}
		for _, c := range containersOf(pod, list) {
			name := c["name"].(string)
			if c["restartPolicy"] == "Always" {
				name += "*"
			}
			words = append(words, name)
		}
	}
	return strings.Join(words, " ")
}

func containersOf(pod object, list string) []map[string]any {
	containers, _, _ := unstructured.NestedSlice(pod.Object, "spec", list)
	var out []map[string]any
	for _, c := range containers {
		out = append(out, c.(map[string]any))
	}
	return out
}

// tryPod creates a pod in a namespace and returns what was stored, or why it was refused.
func tryPod(t *testing.T, namespace, name, spec string) (object, string) {
	t.Helper()
	return postPod(t, namespace, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s}, spec: {%s}}", namespace, name, spec))
}

func postPod(t *testing.T, namespace, manifest string) (object, string) {
	t.Helper()
	code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), mustParse(t, manifest).Object)
	if err != nil {
		t.Fatal(err)
	}
	if code != http.StatusCreated {
		return object{}, fmt.Sprintf("%d %s", code, answer)
	}
	var stored object
	if err := json.Unmarshal(answer, &stored.Object); err != nil {
		t.Fatal(err)
	}
	return stored, ""
}

// createPod is tryPod with a pod that must be taken.
func createPod(t *testing.T, namespace, name, spec string) object {
	t.Helper()
	pod, refused := tryPod(t, namespace, name, spec)
	if refused != "" {
		t.Fatalf("pod %s/%s: %s", namespace, name, refused)
	}
	return pod
}

var admissionOnce sync.Once

// admitting installs the webhooks and the policies, waits until the API server, which reads them in its own time, goes by
// them, and makes a namespace.
func admitting(t *testing.T, labels ...string) string {
	t.Helper()
	admissionOnce.Do(func() {
		if err := serveAdmission(); err != nil {
			t.Fatal(err)
		}
		waitForShape(t, admitted(t), app, "osm-init | app envoy", false)
		for _, way := range ways {
			waitForShape(t, admitted(t, labelled(way, all[0])...), app, "| app envoy", false)
			waitForShape(t, admitted(t, labelled(way, all[1])...), app, "envoy* | app", false)
			waitForShape(t, admitted(t, labelled(way, all[2])...), app, "osm-init | app envoy", true)
		}
	})
	return newNamespace(t, labels...)
}

// admitted makes a namespace whose pods are injected for mesh osm.
func admitted(t *testing.T, labels ...string) string {
	t.Helper()
	namespace := newNamespace(t, append(labels, "inject=osm")...)
	mutators.Store(namespace, decision.Options{Dialect: dialectOf(t, "osm")})
	return namespace
}

// waitForShape makes pods until they have the shape, and, if the last container has to be restricted, that is.
func waitForShape(t *testing.T, namespace, spec, want string, restricted bool) {
	t.Helper()
	deadline := time.Now().Add(settleTime)
	for n := 0; ; n++ {
		pod := createPod(t, namespace, fmt.Sprintf("probe-%d", n), spec)
		containers := containersOf(pod, "containers")
		context, _ := containers[len(containers)-1]["securityContext"].(map[string]any)
		if shape(pod) == want && (!restricted || context["runAsNonRoot"] == true) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %s, want %s", settleTime, shape(pod), want)
		}
		time.Sleep(pollTime)
	}
}

// ways are how the changes are made: by policies, by a webhook behind the mesh's, and by one ahead of it. Each has the labels of its own
// namespaces.
var ways = []string{"detour.io", "late.test", "early.test"}

// labelled are the labels with which a way makes the changes.
func labelled(way string, changes ...admission.Change) (labels []string) {
	for _, c := range changes {
		labels = append(labels, way+"/"+string(c)+"=enabled")
	}
	return labels
}

var all = []admission.Change{admission.RemoveInit, admission.NativeSidecar, admission.RestrictSidecar}

// The mesh's webhook injects after the policies, and before or after detour's: who sees the pod too early is called again.
func TestInjectedPods(t *testing.T) {
	t.Parallel()
	tests := []struct{ inject, untouched, removed, native string }{
		{"osm", "migrate warm osm-init | app envoy", "migrate warm | app envoy", "envoy* migrate warm | app"},
		{"osm-again", "migrate warm osm-init | app envoy", "migrate warm | app envoy", "envoy* migrate warm | app"},
		{"fsm", "migrate warm fsm-init | app sidecar", "migrate warm | app sidecar", "sidecar* migrate warm | app"},
		{"istio", "migrate warm istio-init | app istio-proxy", "migrate warm | app istio-proxy", "istio-proxy* migrate warm | app"},
		{"istio-native", "migrate warm istio-init istio-proxy* | app", "migrate warm istio-proxy* | app", "istio-proxy* migrate warm | app"},
	}
	for _, tt := range tests {
		for _, way := range ways {
			t.Run(tt.inject+" "+way, func(t *testing.T) {
				t.Parallel()
				for _, in := range []struct {
					labels []string
					want   string
				}{
					{nil, tt.untouched},
					{[]string{way + "/remove-init=disabled", way + "/native-sidecar="}, tt.untouched},
					{labelled(way, all[0]), tt.removed},
					{labelled(way, all[1]), tt.native},
					{labelled(way, all...), tt.native},
				} {
					namespace := admitting(t, append(in.labels, "inject="+tt.inject)...)
					mutators.Store(namespace, decision.Options{Dialect: dialectOf(t, tt.inject)})
					pod := createPod(t, namespace, "web", appAndInit)
					if got := shape(pod); got != in.want {
						t.Errorf("%q: %s, want %s", in.labels, got, in.want)
					}
					selector, _, _ := unstructured.NestedStringMap(pod.Object, "spec", "nodeSelector")
					if (selector[readyLabel] == "true") != (in.want != tt.untouched) {
						t.Errorf("%q: the node selector is %v", in.labels, selector)
					}
				}
			})
		}
	}
}

// istio's injector may be called again after all changes but those of a webhook behind it, and then undoes them.
func TestAnInjectorThatInjectsAgain(t *testing.T) {
	t.Parallel()
	for _, way := range ways {
		namespace := admitting(t, append(labelled(way, all...), "inject=istio-again")...)
		mutators.Store(namespace, decision.Options{Dialect: dialectOf(t, "istio")})
		pod, refused := tryPod(t, namespace, "web", appAndInit)
		if way == "late.test" && (refused != "" || shape(pod) != "istio-proxy* migrate warm | app") {
			t.Errorf("%s: %s %s", way, shape(pod), refused)
		}
		if way != "late.test" && !strings.Contains(refused, `Duplicate value: \"istio-proxy\"`) {
			t.Errorf("%s is not refused: %s %s", way, shape(pod), refused)
		}
	}
}

// dialectOf is the mesh that an injector injects for.
func dialectOf(t *testing.T, injector string) mesh.Dialect {
	t.Helper()
	name, _, _ := strings.Cut(injector, "-")
	d, ok := mesh.Find(name)
	if !ok {
		t.Fatalf("there is no mesh %s", name)
	}
	return d
}

// A pod with 100 init containers costs the policies no more than they may cost.
func TestAPodWithManyInitContainers(t *testing.T) {
	t.Parallel()
	var inits []string
	for i := range 100 {
		inits = append(inits, fmt.Sprintf("{name: init-%d, image: app}", i))
	}
	spec := "initContainers: [" + strings.Join(inits, ", ") + "], " + app
	for _, way := range ways {
		namespace := admitting(t, append(labelled(way, all...), "inject=osm")...)
		mutators.Store(namespace, decision.Options{Dialect: dialectOf(t, "osm")})
		if got := shape(createPod(t, namespace, "web", spec)); !strings.HasPrefix(got, "envoy* init-0 ") || !strings.HasSuffix(got, " init-99 | app") {
			t.Errorf("%s: %s", way, got)
		}
	}
}

// A policy comes before the webhooks: only because it is called again does it see what they inject.
func TestWithoutReinvocationThePolicySeesNoInjection(t *testing.T) {
	t.Parallel()
	namespace := admitting(t, "inject=osm", "never-again=enabled")
	if got := shape(createPod(t, namespace, "web", app)); got != "osm-init | app envoy" {
		t.Errorf("%s: what the test of the policies shows is not due to reinvocation", got)
	}
	// The policy itself works.
	injected := "initContainers: [{name: osm-init, image: app, " + osmInitContext + "}], containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: {runAsUser: 1500}}]"
	waitForShape(t, newNamespace(t, "never-again=enabled"), injected, "| app envoy", false)
}

func TestTheNativeSidecarHasTheServiceAccountsToken(t *testing.T) {
	t.Parallel()
	sidecar := containersOf(createPod(t, admitting(t, "inject=osm", nativeSidecar), "web", app), "initContainers")[0]
	mounts, _ := sidecar["volumeMounts"].([]any)
	if !slices.ContainsFunc(mounts, func(m any) bool {
		return m.(map[string]any)["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
	}) {
		t.Errorf("it has only %v", mounts)
	}
}

// The aim of it all: a namespace that enforces the Pod Security Standard restricted takes meshed pods.
func TestInARestrictedNamespace(t *testing.T) {
	t.Parallel()
	const spec = "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, " +
		"containers: [{name: app, image: app, securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"
	const specOfContainers = "containers: [{name: app, image: app, securityContext: {runAsUser: 1000, runAsNonRoot: true, " +
		"seccompProfile: {type: RuntimeDefault}, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"
	tests := []struct {
		name, spec string
		labels     []string
		want       string   // the pod's shape
		refused    []string // words of the refusal
	}{
		{"no mesh", spec, nil, "| app", nil},
		{"osm", spec, []string{"inject=osm"}, "", []string{`violates PodSecurity \"restricted`, "NET_ADMIN", "osm-init"}},
		{"osm, without its init container", spec, []string{"inject=osm", removeInit}, "", []string{"allowPrivilegeEscalation", "envoy"}},
		{"osm, with a restricted sidecar only", spec, []string{"inject=osm", restrictSidecar}, "", []string{"NET_ADMIN", "osm-init"}},
		{"osm, both", spec, []string{"inject=osm", removeInit, restrictSidecar}, "| app envoy", nil},
		{"osm, native", spec, []string{"inject=osm", nativeSidecar, restrictSidecar}, "envoy* | app", nil},
		{"osm, all", spec, []string{"inject=osm", removeInit, nativeSidecar, restrictSidecar}, "envoy* | app", nil},
		{"osm, a pod without a securityContext of its own", specOfContainers, []string{"inject=osm", removeInit, restrictSidecar}, "| app envoy", nil},
		{"osm, called again", spec, []string{"inject=osm-again", removeInit, restrictSidecar}, "| app envoy", nil},
		{"a careful injector", spec, []string{"inject=osm-strict"}, "", []string{"NET_ADMIN", "osm-init"}},
		{"a careful injector, without its init container", spec, []string{"inject=osm-strict", removeInit}, "| app envoy", nil},
		{"fsm", spec, []string{"inject=fsm", removeInit, restrictSidecar}, "| app sidecar", nil},
		{"istio", spec, []string{"inject=istio"}, "", []string{"NET_ADMIN", "istio-init"}},
		{"istio, without its init container", spec, []string{"inject=istio", removeInit}, "| app istio-proxy", nil},
		{"istio, native", spec, []string{"inject=istio", nativeSidecar}, "istio-proxy* | app", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			namespace := admitting(t, append(tt.labels, "pod-security.kubernetes.io/enforce=restricted")...)
			pod, refused := tryPod(t, namespace, "web", tt.spec)
			if tt.refused == nil {
				if refused != "" || shape(pod) != tt.want {
					t.Errorf("%s %s, want %s", shape(pod), refused, tt.want)
				}
				return
			}
			for _, word := range append(tt.refused, "403") {
				if !strings.Contains(refused, word) {
					t.Errorf("not refused for %s: %s %s", word, shape(pod), refused)
				}
			}
		})
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
