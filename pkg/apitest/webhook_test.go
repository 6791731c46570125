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
	serveMeshConfigs(t)
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
	serveMeshConfigs(t)
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

// What ADD would refuse is refused at kubectl apply with ADD's sentence, what it would warn of is a warning.
func TestKubectlSaysWhatADDWouldSay(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	mustApply(t, mustParse(t, "{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: "+s.mesh+", name: osm-mesh-config}, spec: {}}"))
	s.start()
	const sentence = `openservicemesh.io/inbound-port-exclusion-list: entry 1 "0": a port is 1 to 65535`
	for _, tt := range []struct {
		check string
		want  []string
	}{
		{"off", []string{"pod/web created"}},
		{"warn", []string{"Warning: it will not start: pod shop/web: " + sentence}},
		{"enforce", []string{"admission webhook", "denied the request: pod shop/web: " + sentence}},
	} {
		namespace := newNamespace(t, s.label("check", tt.check))
		out := s.apply(annotatedPod(namespace, "web", badExclusion))
		for _, words := range tt.want {
			if !strings.Contains(strings.ReplaceAll(out, namespace, "shop"), words) {
				t.Errorf("%s: kubectl does not say %q but %s", tt.check, words, out)
			}
		}
		good := s.apply(annotatedPod(namespace, "good", "{}"))
		if strings.TrimSpace(good) != "pod/good created" {
			t.Errorf("%s: a good pod: %s", tt.check, good)
		}
	}
	namespace := newNamespace(t, s.label("check", "enforce"))
	workload := fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: %s, name: web}, spec: {selector: {matchLabels: {app: web}}, "+
		"template: {metadata: {labels: {app: web}, annotations: %s}, spec: {%s}}}}", namespace, badExclusion, app)
	if out := s.apply(workload); !strings.Contains(out, "Warning: Deployment web: its pods would not start") || !strings.Contains(out, sentence) {
		t.Errorf("kubectl says of a template %s", out)
	}
}

func TestAMeshConfigThatADDCantReadIsRefused(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	mustApply(t, mustParse(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+s.mesh+", labels: {"+s.namespace+".test/mesh: \"true\"}}}"))
	config := func(traffic string) string {
		return "{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: " + s.mesh + ", name: osm-mesh-config}, spec: {traffic: " + traffic + "}}"
	}
	if out := s.apply(config("{}")); !strings.Contains(out, "created") {
		t.Fatalf("an empty one: %s", out)
	}
	s.eventually("a malformed one is denied", func() bool {
		return strings.Contains(s.apply(config(`{outboundIPRangeExclusionList: ["10.0.0.0/33"]}`)), `denied the request: MeshConfig `+s.mesh+`/osm-mesh-config: spec.traffic.outboundIPRangeExclusionList: entry 1`)
	})
	if out := s.apply(config("{outboundPortExclusionList: [6379]}")); !strings.Contains(out, "running pods keep their rules until they are restarted") {
		t.Errorf("a change: %s", out)
	}
}

// A controller leaves the name to the API server, which gives the pod one before it is checked.
func TestAPodWithAGeneratedNameIsChecked(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	s := newHookScene(t)
	s.start()
	namespace := newNamespace(t, s.label("check", "enforce"))
	for annotations, want := range map[string]string{"{}": "", badExclusion: "pod " + namespace + "/web-"} {
		_, refused := postPod(t, namespace, strings.Replace(annotatedPod(namespace, "web-", annotations), "name: web-", "generateName: web-", 1))
		if (refused == "") != (want == "") || !strings.Contains(refused, want) {
			t.Errorf("%s, want %q", refused, want)
		}
	}
}

// Whatever a pod has, the answer comes.
func TestAPodWithAHundredInitContainers(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
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
