//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// outsideAddr is an address that nobody has.
const outsideAddr = "203.0.113.1:80"

// meshedPod is the manifest of a meshed pod that listens at 8080, 9090 and 9091 and dials the addresses.
func meshedPod(t *testing.T, namespace, name string, annotations map[string]string, addrs ...string) string {
	t.Helper()
	return manifest(t, "meshed.yaml", map[string]string{
		"NAMESPACE": namespace, "NAME": name, "IMAGE": workloadImage, "PROXY": "envoy",
		"ANNOTATIONS": toJSON(t, annotations), "ADDRS": strings.Join(addrs, `","`),
	})
}

// startMeshed starts a meshed pod that dials outsideAddr, and waits until it did so through its proxy.
func startMeshed(t *testing.T, namespace, name string) {
	t.Helper()
	apply(t, meshedPod(t, namespace, name, nil, outsideAddr))
	wantMeshed(t, namespace, name)
}

// wantMeshed wants that a pod that dials outsideAddr gets ready and did so through its proxy only.
func wantMeshed(t *testing.T, namespace, name string) {
	t.Helper()
	waitReady(t, namespace, name)
	wantLine(t, namespace, name, fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", outsideAddr))
}

// startServer starts an unmeshed pod that answers "outside PORT" at 8001 and 9000, and returns its addresses and those of
// the service that leads from port 8000 to its port 9000: one of each family.
func startServer(t *testing.T, namespace string) (ips, vips []string) {
	t.Helper()
	apply(t, manifest(t, "server.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage}))
	waitReady(t, namespace, "server")
	ips = podIPs(t, namespace, "server")
	vips = strings.Fields(kubectl(t, "get", "service", "--namespace", namespace, "server", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(ips) != 2 || len(vips) != 2 {
		t.Fatalf("the server has the addresses %q and its service %q, want one of each family", ips, vips)
	}
	return ips, vips
}

// startClient starts an unmeshed pod that dials the addresses.
func startClient(t *testing.T, namespace string, addrs ...string) {
	t.Helper()
	apply(t, manifest(t, "client.yaml", map[string]string{
		"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDRS": strings.Join(addrs, `","`),
	}))
	waitReady(t, namespace, "client")
}

// addLine is what detour's log says of an ADD.
type addLine struct{ Pod, ContainerID, Netns, Outcome, Reason string }

// findAdd returns the newest line about a pod.
func findAdd(t *testing.T, namespace, pod string) (last addLine, err error) {
	t.Helper()
	for line := range strings.Lines(shell(t, "cat /var/log/detour.log")) {
		var l addLine
		// The last line may not be whole yet.
		if err := json.Unmarshal([]byte(line), &l); err == nil && l.Pod == namespace+"/"+pod && l.Outcome != "" {
			last = l
		}
	}
	if last.Pod == "" {
		err = fmt.Errorf("detour's log says nothing about pod %s/%s", namespace, pod)
	}
	return last, err
}

// lastAdd is findAdd of a pod that detour has seen.
func lastAdd(t *testing.T, namespace, pod string) addLine {
	t.Helper()
	add, err := findAdd(t, namespace, pod)
	must(t, err)
	return add
}

// wantSkipped wants that detour left the pod alone, for that reason.
func wantSkipped(t *testing.T, namespace, pod, reason string) {
	t.Helper()
	if add := lastAdd(t, namespace, pod); add.Outcome != "skipped" || add.Reason != reason {
		t.Errorf("pod %s/%s: %s because %q, want skipped because %q", namespace, pod, add.Outcome, add.Reason, reason)
	}
}

// rules lists what the kernel has in the pod's network namespace, of whatever kind.
func rules(t *testing.T, namespace, pod string) string {
	t.Helper()
	return shell(t, "nsenter --net="+lastAdd(t, namespace, pod).Netns+` sh -euc '
		nft list ruleset
		for family in iptables ip6tables; do $family-save | { grep -v "^#" || :; }; done'`)
}
