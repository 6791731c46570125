//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// startInjected starts a pod that was injected with osm-init, and returns what its own init container said.
func startInjected(t *testing.T, namespace, addr string) string {
	t.Helper()
	apply(t, manifest(t, "injected.yaml", map[string]string{
		"NAMESPACE": namespace, "NAME": "web", "IMAGE": workloadImage, "INIT_IMAGE": iptablesImage, "ADDR": addr,
	}))
	waitReady(t, namespace, "web")
	return strings.TrimSpace(kubectl(t, "logs", "--namespace", namespace, "web", "--container", "migrate"))
}

func TestAPodWithItsOwnInitContainerIsLeftAlone(t *testing.T) {
	installDetour(t)
	addr := startServer(t, newNamespace(t, "elsewhere"))[0] + ":8001"
	namespace := newNamespace(t, "injected", restricted)
	if got, want := startInjected(t, namespace, addr), addr+": outside 8001"; got != want {
		t.Errorf("the init container got %q, want %q", got, want)
	}
	wantLine(t, namespace, "web", addr+": outside 8001")
	if log := shell(t, "cat /var/log/detour.log"); !strings.Contains(log, `its init container \"osm-init\" programs the pod itself`) {
		t.Errorf("the log does not say why the pod is left alone: %s", log)
	}
}

func TestUnderTheNativeSidecarPolicyInitContainersHaveAMeshedNetwork(t *testing.T) {
	installDetour(t)
	kubectl(t, "apply", "-k", "../../deploy/admission/v1beta1")
	addr := startServer(t, newNamespace(t, "elsewhere"))[0] + ":8001"
	namespace := newNamespace(t, "native", restricted, "detour.io/native-sidecar=enabled")
	want := fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr)
	eventually(t, func() error { // a policy takes effect a moment after it was made
		_, _ = output(kubernetes.Kubectl(t.Context(), "delete", "pod", "--namespace", namespace, "web", "--ignore-not-found", "--now"))
		startInjected(t, namespace, addr)
		init := kubectl(t, "get", "pod", "--namespace", namespace, "web", "-o", "jsonpath={.spec.initContainers[*].name}")
		if init != "envoy migrate" {
			return fmt.Errorf("the init containers are %q", init)
		}
		return nil
	})
	if got := strings.TrimSpace(kubectl(t, "logs", "--namespace", namespace, "web", "--container", "migrate")); got != want {
		t.Errorf("the init container got %q, want %q", got, want)
	}
	wantLine(t, namespace, "web", want)
}
