//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"
)

// startServer starts an unmeshed pod that answers "outside PORT" at 8001 and 9000, and returns its addresses.
func startServer(t *testing.T, namespace string) []string {
	t.Helper()
	apply(t, manifest(t, "server.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage}))
	waitReady(t, namespace, "server")
	return podIPs(t, namespace, "server")
}

func TestAPodRunsAndIsReached(t *testing.T) {
	namespace := newNamespace(t, "plain")
	ips := startServer(t, namespace)
	if len(ips) != 2 {
		t.Errorf("the pod has the addresses %q, want one of each family", ips)
	}
	for _, ip := range ips {
		wantAnswer(t, ip, 8001, "outside 8001")
	}
	vips := strings.Fields(kubectl(t, "get", "service", "--namespace", namespace, "server", "-o", "jsonpath={.spec.clusterIPs[*]}"))
	if len(vips) != 2 {
		t.Errorf("the service has the addresses %q, want one of each family", vips)
	}
	for _, vip := range vips {
		wantAnswer(t, vip, 8000, "outside 9000")
	}
	addrs := []string{ips[0] + ":8001", vips[0] + ":8000"}
	apply(t, manifest(t, "client.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDRS": strings.Join(addrs, `","`)}))
	waitReady(t, namespace, "client")
	wantLine(t, namespace, "client", addrs[0]+": outside 8001")
	wantLine(t, namespace, "client", addrs[1]+": outside 9000")
}

func TestTheRestrictedStandardIsEnforced(t *testing.T) {
	namespace := newNamespace(t, "refusing", restricted)
	startServer(t, namespace)
	pod := manifest(t, "client.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDRS": "127.0.0.1:1"})
	granting := strings.Replace(pod, "drop: [ALL]", "drop: [ALL], add: [NET_ADMIN]", 1)
	if err := tryApply(t, granting); granting == pod || err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
		t.Errorf("a pod with NET_ADMIN: %v, want that it violates the Standard", err)
	}
}

func TestMeshedPodGoesThroughItsProxy(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "shop", restricted)
	server := startServer(t, newNamespace(t, "elsewhere"))[0]
	apply(t, manifest(t, "meshed.yaml", map[string]string{
		"NAMESPACE": namespace, "NAME": "web", "IMAGE": workloadImage, "PROXY": "envoy",
		"ADDRS": fmt.Sprintf(`%[1]s:8001","%[1]s:9000`, server), // the other port is excluded
	}))
	waitReady(t, namespace, "web")
	wantLine(t, namespace, "web", fmt.Sprintf("%[1]s:8001: proxy 15001 original %[1]s:8001", server))
	wantLine(t, namespace, "web", server+":9000: outside 9000")
	for _, ip := range podIPs(t, namespace, "web") {
		host := ip
		if strings.Contains(ip, ":") {
			host = "[" + ip + "]"
		}
		wantAnswer(t, ip, 8080, fmt.Sprintf("proxy 15003 original %s:8080", host))
		wantAnswer(t, ip, 9090, "app 9090") // excluded by the pod
	}
	if log := shell(t, "cat /var/log/detour.log"); !strings.Contains(log, `"pod":"shop/web"`) {
		t.Errorf("the log says nothing about the pod: %s", log)
	}
}

func TestNothingIsLeftOfADeletedPod(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "short", restricted)
	startMeshed(t, namespace, "web")
	var added struct{ ContainerID, Netns string }
	for line := range strings.Lines(shell(t, "cat /var/log/detour.log")) {
		if strings.Contains(line, `"pod":"short/web"`) {
			if err := json.Unmarshal([]byte(line), &added); err != nil {
				t.Fatal(err)
			}
		}
	}
	list := fmt.Sprintf("find /run/netns /run/detour/attachments -name '%s*' -o -name '%s'", added.ContainerID, path.Base(added.Netns))
	if got := strings.Count(shell(t, list), "\n"); added.ContainerID == "" || got != 2 {
		t.Fatalf("%s listed %d things, want the pod's network namespace and its attachment", list, got)
	}
	kubectl(t, "delete", "pod", "--namespace", namespace, "web")
	eventually(t, func() error {
		if out := shell(t, list); out != "" {
			return fmt.Errorf("of the deleted pod there is still %s", out)
		}
		return nil
	})
}
