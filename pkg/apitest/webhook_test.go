//go:build kubeapi

package apitest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestTheWebhookChangesInjectedPods(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.start()
	remove, native := s.label("remove-init", "enabled"), s.label("native-sidecar", "enabled")
	for _, tt := range []struct {
		labels []string
		want   string
	}{
		{nil, "osm-init | app envoy"},
		{[]string{s.label("remove-init", "disabled")}, "osm-init | app envoy"},
		{[]string{remove}, "| app envoy"},
		{[]string{native}, "envoy* | app"},
		{[]string{remove, native, s.label("restrict-sidecar", "enabled")}, "envoy* | app"},
	} {
		pod := createPod(t, newNamespace(t, tt.labels...), "web", injectedByOSM)
		selector, _, _ := unstructured.NestedStringMap(pod.Object, "spec", "nodeSelector")
		if got := shape(pod); got != tt.want || (selector["detour.io/ready"] == "true") == strings.Contains(got, "osm-init") {
			t.Errorf("%q: %s on nodes %v, want %s", tt.labels, got, selector, tt.want)
		}
		// What the mesh's own webhook injects, whatever the order.
		if got := shape(createPod(t, admitting(t, append(tt.labels, "inject=osm")...), "web", app)); got != tt.want {
			t.Errorf("%q, injected by a webhook: %s, want %s", tt.labels, got, tt.want)
		}
	}
	if got := shape(createPod(t, newNamespace(t, remove, native), "web", app)); got != "| app" {
		t.Errorf("a pod that is not injected: %s", got)
	}
}

// The aim: a namespace that enforces restricted takes the pods of a mesh that always injects a privileged container.
func TestTheWebhooksPodsInARestrictedNamespace(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.start()
	const spec = "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}, " +
		"containers: [{name: app, image: app, securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]"
	const enforce = "pod-security.kubernetes.io/enforce=restricted"
	if _, refused := tryPod(t, admitting(t, "inject=osm", enforce), "web", spec); !strings.Contains(refused, "NET_ADMIN") {
		t.Errorf("without the webhook: %q", refused)
	}
	namespace := admitting(t, "inject=osm", enforce, s.label("native-sidecar", "enabled"), s.label("restrict-sidecar", "enabled"))
	if pod, refused := tryPod(t, namespace, "web", spec); refused != "" || shape(pod) != "envoy* | app" {
		t.Errorf("%s %s", shape(pod), refused)
	}
}

// Whatever a pod has, the answer comes.
func TestAPodWithAHundredInitContainers(t *testing.T) {
	t.Parallel()
	s := newHookScene(t)
	s.start()
	var inits []string
	for i := range 100 {
		inits = append(inits, fmt.Sprintf("{name: init-%d, image: app, env: [{name: LONG, value: %s}]}", i, strings.Repeat("x", 10_000)))
	}
	many := "initContainers: [" + strings.Join(inits, ", ") + ", {name: osm-init, image: init, " + osmInitContext + "}], " + withoutInit
	pod, refused := tryPod(t, newNamespace(t, s.label("native-sidecar", "enabled"), s.label("check", "enforce")), "web", many)
	if refused != "" {
		t.Fatalf("%.500s", refused)
	}
	words := strings.Fields(shape(pod))
	if len(words) != 103 || words[0] != "envoy*" || words[1] != "init-0" || words[100] != "init-99" || slices.Contains(words, "osm-init") {
		t.Errorf("%q", words)
	}
}
