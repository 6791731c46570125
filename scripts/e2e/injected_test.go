//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// startInjector starts the mesh's webhook for namespaces with the label inject=enabled.
func startInjector(t *testing.T, m mesh) {
	t.Helper()
	namespace := newNamespace(t, "injector")
	apply(t, manifest(t, "injector.yaml", map[string]string{
		"NAMESPACE": namespace, "IMAGE": workloadImage, "INIT": m.init, "INIT_IMAGE": iptablesImage, "SCRIPT": initScript(t), "SIDECAR": m.sidecar,
	}))
	waitReady(t, namespace, "injector")
	apply(t, manifest(t, "webhook.yaml", map[string]string{
		"HOST_IP": kubectl(t, "get", "pod", "--namespace", namespace, "injector", "-o", "jsonpath={.status.hostIP}"),
		"CA":      base64.StdEncoding.EncodeToString([]byte(kubectl(t, "logs", "--namespace", namespace, "injector"))),
	}))
	deleteAtEnd(t, "mutatingwebhookconfiguration", "injector")
}

// Labels of deploy/components/webhook.
const (
	removeInit      = "detour.io/remove-init=enabled"
	nativeSidecar   = "detour.io/native-sidecar=enabled"
	restrictSidecar = "detour.io/restrict-sidecar=enabled"
	enforceCheck    = "detour.io/check=enforce"
)

// injected is a pod that its mesh injects into, with an init container that programs it and a sidecar.
type injected struct {
	namespace   string
	labels      []string
	annotations map[string]string
	admitted    string // the containers, [init containers | containers], or why the pod is refused
	init        string // what the application's init container is answered in the end
	skipped     string // why detour leaves the pod alone
}

const direct, proxied = "direct", "proxied"

var injectedPods = []injected{
	{
		namespace: "with-osm-init", admitted: "[migrate osm-init | app envoy]", init: direct, // it comes before the rules
		skipped: `its init container "osm-init" programs the pod itself`,
	},
	{
		namespace: "restricted-osm-init", labels: []string{restricted},
		admitted: `container "osm-init" must not include "NET_ADMIN"`,
	},
	{
		namespace: "without-osm-init", labels: []string{restricted, removeInit, restrictSidecar, enforceCheck},
		annotations: map[string]string{"detour.io/direct-init-containers": "true"},
		admitted:    "[migrate | app envoy]", init: direct,
	},
	{
		namespace: "native-sidecar", labels: []string{restricted, nativeSidecar, restrictSidecar},
		admitted: "[envoy migrate | app]", init: proxied,
	},
}

// In namespaces with and without the webhook's labels, on an API server without any feature gate.
func TestInjectedPods(t *testing.T) {
	installDetour(t)
	testInjected(t, osm, injectedPods)
}

// After Open Service Mesh, another mesh takes over the cluster for a while.
func TestInjectedPodsOfFSM(t *testing.T) {
	installDetour(t)
	defer osm.install(t)
	deleteAtEnd(t, "crd", "meshconfigs.config.flomesh.io")
	deleteAtEnd(t, "namespace", "fsm-system")
	fsm.install(t)
	testInjected(t, fsm, injectedPods[2:])
}

func testInjected(t *testing.T, m mesh, pods []injected) {
	t.Helper()
	startInjector(t, m)
	ips, _ := startServer(t, newNamespace(t, "outside-injected"))
	addr := ips[0] + ":8001"
	answers := map[string]string{direct: addr + ": outside 8001", proxied: fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr)}
	for _, p := range pods {
		namespace := newNamespace(t, m.own.Replace(p.namespace), append(p.labels, "inject=enabled")...)
		pod := manifest(t, "app.yaml", map[string]string{
			"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDR": addr, "ANNOTATIONS": toJSON(t, p.annotations),
		})
		admitted := m.own.Replace(p.admitted)
		eventually(t, func() error { // webhooks take effect some time after they were made
			if got := admit(t, pod); !strings.Contains(got, admitted) {
				return fmt.Errorf("a pod in namespace %s gets %q, want %q", namespace, got, admitted)
			}
			return nil
		})
		if !strings.HasPrefix(admitted, "[") {
			continue
		}
		apply(t, pod)
		waitReady(t, namespace, "web")
		log := strings.TrimSpace(kubectl(t, "logs", "--namespace", namespace, "web", "--container", "migrate"))
		if got := log[strings.LastIndex(log, "\n")+1:]; got != answers[p.init] {
			t.Errorf("in namespace %s the init container got %q, want %q", namespace, got, answers[p.init])
		}
		wantLine(t, namespace, "web", answers[proxied])
		if p.skipped != "" {
			wantSkipped(t, namespace, "web", p.skipped)
		} else if add := lastAdd(t, namespace, "web"); add.Outcome != "programmed" {
			t.Errorf("in namespace %s: %s", namespace, add.Outcome)
		}
	}
}

// kubectl is told at once, and in the same words, what ADD says of a pod.
func TestAMalformedPodIsRefusedWithTheSentenceOfADD(t *testing.T) {
	installDetour(t)
	malformed := map[string]string{"openservicemesh.io/outbound-port-exclusion-list": "80,8O"}
	unchecked := newNamespace(t, "unchecked")
	apply(t, meshedPod(t, unchecked, "web", malformed, outsideAddr))
	const sentence = "pod unchecked/web: openservicemesh.io/outbound-port-exclusion-list: "
	var said string
	eventually(t, func() error {
		events := kubectl(t, "get", "events", "--namespace", unchecked, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`)
		for line := range strings.Lines(events) {
			if _, after, ok := strings.Cut(strings.TrimSpace(line), sentence); ok {
				said = after
				return nil
			}
		}
		return fmt.Errorf("no event has %q: %s", sentence, events)
	})

	checked := newNamespace(t, "checked", enforceCheck)
	want := strings.ReplaceAll(sentence, unchecked, checked) + said
	eventually(t, func() error { // the API server learns the label in its own time
		if got := admit(t, meshedPod(t, checked, "web", malformed, outsideAddr)); !strings.Contains(got, want) {
			return fmt.Errorf("kubectl says %q, want %q", got, want)
		}
		return nil
	})
	startMeshed(t, checked, "other")
}

// admit returns the containers that the pod would have after admission, or why it is refused.
func admit(t *testing.T, pod string) string {
	t.Helper()
	const containers = "jsonpath=[{.spec.initContainers[*].name} | {.spec.containers[*].name}]"
	cmd := kubernetes.Kubectl(t.Context(), "create", "--dry-run=server", "-f", "-", "-o", containers)
	cmd.Stdin = strings.NewReader(pod)
	out, err := output(cmd)
	if err != nil {
		return err.Error()
	}
	return out
}
