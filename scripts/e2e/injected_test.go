//go:build e2e

package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// startInjector starts a mesh's webhook for namespaces with the label inject=enabled.
func startInjector(t *testing.T) {
	t.Helper()
	namespace := newNamespace(t, "injector")
	apply(t, manifest(t, "injector.yaml", map[string]string{
		"NAMESPACE": namespace, "IMAGE": workloadImage, "INIT_IMAGE": iptablesImage, "SCRIPT": initScript(t),
	}))
	waitReady(t, namespace, "injector")
	apply(t, manifest(t, "webhook.yaml", map[string]string{
		"HOST_IP": kubectl(t, "get", "pod", "--namespace", namespace, "injector", "-o", "jsonpath={.status.hostIP}"),
		"CA":      base64.StdEncoding.EncodeToString([]byte(kubectl(t, "logs", "--namespace", namespace, "injector"))),
	}))
	deleteAtEnd(t, "mutatingwebhookconfiguration", "injector")
}

// policies is the folder of the admission policies for the cluster's version.
func policies(t *testing.T) string {
	t.Helper()
	if _, err := tryKubectl(t, "get", "--raw", "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"); err == nil {
		return "../../deploy/admission/v1"
	}
	return "../../deploy/admission/v1beta1"
}

// TestInjectedPods has a pod injected as its mesh does, with an init container that programs it and a sidecar, in
// namespaces with and without the labels of deploy/admission.
func TestInjectedPods(t *testing.T) {
	installDetour(t)
	kubectl(t, "apply", "-k", policies(t))
	startInjector(t)
	ips, _ := startServer(t, newNamespace(t, "outside-injected"))
	addr := ips[0] + ":8001"
	direct, proxied := addr+": outside 8001", fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr)
	tests := []struct {
		namespace   string
		labels      []string
		annotations map[string]string
		admitted    string // with the containers [init containers | containers], or why not
		init        string // what the application's init container logs in the end
		skipped     string // why detour leaves the pod alone
	}{
		{
			namespace: "with-osm-init", admitted: "[migrate osm-init | app envoy]", init: direct, // it comes before the rules
			skipped: `its init container "osm-init" programs the pod itself`,
		},
		{
			namespace: "restricted-osm-init", labels: []string{restricted},
			admitted: `container "osm-init" must not include "NET_ADMIN"`,
		},
		{
			namespace: "without-osm-init", labels: []string{restricted, "detour.io/remove-init=enabled", "detour.io/restrict-sidecar=enabled"},
			annotations: map[string]string{"detour.io/direct-init-containers": "true"},
			admitted:    "[migrate | app envoy]", init: direct,
		},
		{
			namespace: "native-sidecar", labels: []string{restricted, "detour.io/native-sidecar=enabled", "detour.io/restrict-sidecar=enabled"},
			admitted: "[envoy migrate | app]", init: proxied,
		},
	}
	for _, tt := range tests {
		namespace := newNamespace(t, tt.namespace, append(tt.labels, "inject=enabled")...)
		pod := manifest(t, "app.yaml", map[string]string{
			"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDR": addr, "ANNOTATIONS": toJSON(t, tt.annotations),
		})
		eventually(t, func() error { // webhooks and policies take effect some time after they were made
			if got := admit(t, pod); !strings.Contains(got, tt.admitted) {
				return fmt.Errorf("a pod in namespace %s gets %q, want %q", namespace, got, tt.admitted)
			}
			return nil
		})
		if !strings.HasPrefix(tt.admitted, "[") {
			continue
		}
		apply(t, pod)
		waitReady(t, namespace, "web")
		log := strings.TrimSpace(kubectl(t, "logs", "--namespace", namespace, "web", "--container", "migrate"))
		if got := log[strings.LastIndex(log, "\n")+1:]; got != tt.init {
			t.Errorf("in namespace %s the init container got %q, want %q", namespace, got, tt.init)
		}
		wantLine(t, namespace, "web", proxied)
		if tt.skipped != "" {
			wantSkipped(t, namespace, "web", tt.skipped)
		} else if add := lastAdd(t, namespace, "web"); add.Outcome != "programmed" {
			t.Errorf("in namespace %s: %s", namespace, add.Outcome)
		}
	}
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
