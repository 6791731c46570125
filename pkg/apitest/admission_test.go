//go:build kubeapi

package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

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
	pod := mustParse(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s}, spec: {%s}}", namespace, name, spec))
	code, answer, err := kubernetes.admin.send(http.MethodPost, podsOf(namespace), pod.Object)
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
		const inject = "inject=osm"
		waitForShape(t, newNamespace(t, inject), app, "osm-init | app envoy", false)
		waitForShape(t, newNamespace(t, inject, removeInit), app, "| app envoy", false)
		waitForShape(t, newNamespace(t, inject, nativeSidecar), app, "envoy* | app", false)
		waitForShape(t, newNamespace(t, inject, restrictSidecar), app, "osm-init | app envoy", true)
	})
	return newNamespace(t, labels...)
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

func TestInjectedPods(t *testing.T) {
	t.Parallel()
	tests := []struct {
		inject, spec string
		untouched    string // in a namespace without a label
		removed      string // with remove-init
		native       string // with native-sidecar, or with both
	}{
		{"osm", app, "osm-init | app envoy", "| app envoy", "envoy* | app"},
		{"osm", appAndInit, "migrate warm osm-init | app envoy", "migrate warm | app envoy", "envoy* migrate warm | app"},
		{"osm-again", app, "osm-init | app envoy", "| app envoy", "envoy* | app"},
		{"osm-again", appAndInit, "migrate warm osm-init | app envoy", "migrate warm | app envoy", "envoy* migrate warm | app"},
		{"fsm", appAndInit, "migrate warm fsm-init | app sidecar", "migrate warm | app sidecar", "sidecar* migrate warm | app"},
		{"istio", appAndInit, "migrate warm istio-init | app istio-proxy", "migrate warm | app istio-proxy", "istio-proxy* migrate warm | app"},
		{"istio-native", app, "istio-init istio-proxy* | app", "istio-proxy* | app", "istio-proxy* | app"},
		{"istio-native", appAndInit, "migrate warm istio-init istio-proxy* | app", "migrate warm istio-proxy* | app", "istio-proxy* migrate warm | app"},
		// Somebody else's native sidecar stays where it is.
		{
			"osm", "initContainers: [{name: vault, image: app, restartPolicy: Always}], " + app,
			"vault* osm-init | app envoy", "vault* | app envoy", "envoy* vault* | app",
		},
	}
	for _, tt := range tests {
		t.Run(tt.inject+", "+tt.untouched, func(t *testing.T) {
			t.Parallel()
			inject := "inject=" + tt.inject
			for _, in := range []struct {
				labels []string
				want   string
			}{
				{[]string{inject}, tt.untouched},
				{[]string{inject, "detour.io/remove-init=disabled", "detour.io/native-sidecar="}, tt.untouched},
				{[]string{inject, removeInit}, tt.removed},
				{[]string{inject, nativeSidecar}, tt.native},
				{[]string{inject, removeInit, nativeSidecar, restrictSidecar}, tt.native},
			} {
				pod := createPod(t, admitting(t, in.labels...), "web", tt.spec)
				if got := shape(pod); got != in.want {
					t.Errorf("%q: %s, want %s", in.labels, got, in.want)
				}
			}
		})
	}
}

// Pods that nobody injects into, or has injected into by hand, under all policies.
func TestOtherPods(t *testing.T) {
	t.Parallel()
	const envoy = "{name: envoy, image: envoy, securityContext: {runAsUser: 1500}}"
	const validation = "{name: istio-validation, image: proxy, securityContext: {runAsUser: 1337, " + strict + "}}"
	const osmInit = "{name: osm-init, image: app, " + osmInitContext + "}"
	const native = "{name: envoy, image: envoy, restartPolicy: Always, securityContext: {runAsUser: 1500}}"
	tests := []struct{ name, spec, want string }{
		{"not meshed", app, "| app"},
		{"not meshed, with init containers", appAndInit, "migrate warm | app"},
		{"an init container of that name and no sidecar", "initContainers: [" + osmInit + "], " + app, "osm-init | app"},
		{"an init container of that name that may not program the pod", "initContainers: [{name: osm-init, image: app}, " + native + "], " + app, "envoy* osm-init | app"},
		{"a native sidecar of that name", "initContainers: [{name: osm-init, image: app, restartPolicy: Always, " + osmInitContext + "}, " + native + "], " + app, "envoy* osm-init* | app"},
		{"a privileged one", "initContainers: [{name: osm-init, image: app, securityContext: {privileged: true}}, " + native + "], " + app, "envoy* | app"},
		{"an application container of that name", "containers: [{name: osm-init, image: app, " + osmInitContext + "}, " + envoy + "]", "envoy* | osm-init"},
		{"a container of that name that is not the proxy", "containers: [{name: app, image: app}, {name: envoy, image: envoy}]", "| app envoy"},
		{"a gateway, whose only container is the proxy", "containers: [" + envoy + "]", "| envoy"},
		{"a sidecar before the application", "containers: [" + envoy + ", {name: app, image: app}]", "envoy* | app"},
		{"already native", "initContainers: [" + native + ", {name: warm, image: app}], " + app, "envoy* warm | app"},
		{"already native, the only one", "initContainers: [" + native + "], " + app, "envoy* | app"},
		{"native, and not the first", "initContainers: [{name: warm, image: app}, " + native + "], " + app, "envoy* warm | app"},
		{"native, behind osm-init", "initContainers: [" + osmInit + ", " + native + "], " + app, "envoy* | app"},
		{
			"beside istio's validator, which listens where the proxy does and has to be through before it",
			"initContainers: [" + validation + ", {name: warm, image: app}], containers: [{name: app, image: app}, {name: istio-proxy, image: proxy}]", "istio-validation istio-proxy* warm | app",
		},
		{
			"native, behind istio's validator and another",
			"initContainers: [" + validation + ", {name: warm, image: app}, {name: istio-proxy, image: proxy, restartPolicy: Always}], " + app, "istio-validation istio-proxy* warm | app",
		},
		{
			"native, behind istio's validator",
			"initContainers: [" + validation + ", {name: istio-proxy, image: proxy, restartPolicy: Always}, {name: warm, image: app}], " + app, "istio-validation istio-proxy* warm | app",
		},
		{
			"native, ahead of istio's validator, where nobody puts it",
			"initContainers: [{name: warm, image: app}, {name: istio-proxy, image: proxy, restartPolicy: Always}, " + validation + "], " + app, "warm istio-proxy* istio-validation | app",
		},
		{"in the host's network", "hostNetwork: true, initContainers: [" + osmInit + "], containers: [{name: app, image: app}, " + envoy + "]", "osm-init | app envoy"},
	}
	namespace := admitting(t, removeInit, nativeSidecar, restrictSidecar)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := shape(createPod(t, namespace, fmt.Sprintf("pod-%d", i), tt.spec)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
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

func TestTheNativeSidecarKeepsAllThatWasInjected(t *testing.T) {
	t.Parallel()
	const spec = "automountServiceAccountToken: false, " + app
	plain := containersOf(createPod(t, admitting(t, "inject=osm"), "web", spec), "containers")[1]
	native := containersOf(createPod(t, admitting(t, "inject=osm", nativeSidecar), "web", spec), "initContainers")[0]
	if native["restartPolicy"] != "Always" {
		t.Errorf("restartPolicy is %v", native["restartPolicy"])
	}
	delete(native, "restartPolicy")
	for _, field := range []string{"lifecycle", "readinessProbe", "livenessProbe", "startupProbe", "env", "ports", "resources", "volumeMounts"} {
		if plain[field] == nil {
			t.Errorf("the injected sidecar has no %s: the test would not see that it is lost", field)
		}
	}
	if !reflect.DeepEqual(native, plain) {
		t.Errorf("native sidecar\n%v\nwas injected as\n%v", native, plain)
	}
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

// What the sidecar's injector has said itself stays.
func TestTheRestrictedSidecar(t *testing.T) {
	t.Parallel()
	namespace := admitting(t, restrictSidecar)
	tests := []struct{ name, given, want string }{
		{"bare", "{runAsUser: 1500}", "{runAsUser: 1500, allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}"},
		{"with its own", "{runAsUser: 1500, runAsNonRoot: false, capabilities: {add: [NET_RAW]}, seccompProfile: {type: Unconfined}, readOnlyRootFilesystem: true}",
			"{runAsUser: 1500, runAsNonRoot: false, capabilities: {add: [NET_RAW]}, seccompProfile: {type: Unconfined}, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}"},
		{"not the proxy's user", "{runAsUser: 1000}", "{runAsUser: 1000}"},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := mustParse(t, tt.want).Object
			for list, spec := range map[string]string{
				"containers":     "containers: [{name: app, image: app}, {name: envoy, image: envoy, securityContext: %s}]",
				"initContainers": "initContainers: [{name: warm, image: app}, {name: envoy, image: envoy, restartPolicy: Always, securityContext: %s}], " + app,
			} {
				pod := createPod(t, namespace, fmt.Sprintf("%s-%d", strings.ToLower(list), i), fmt.Sprintf(spec, tt.given))
				if got := containersOf(pod, list)[1]["securityContext"]; !sameJSON(mustJSON(t, got), mustJSON(t, want)) {
					t.Errorf("%s: %v, want %v", list, got, want)
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
