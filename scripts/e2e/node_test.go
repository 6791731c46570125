//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
)

func TestAPodRunsAndIsReached(t *testing.T) {
	namespace := newNamespace(t, "plain")
	ips, vips := startServer(t, namespace)
	for i := range ips {
		wantAnswer(t, ips[i], 8001, "outside 8001")
		wantAnswer(t, vips[i], 8000, "outside 9000")
	}
	startClient(t, namespace, ips[0]+":8001", vips[0]+":8000")
	wantLine(t, namespace, "client", ips[0]+":8001: outside 8001")
	wantLine(t, namespace, "client", vips[0]+":8000: outside 9000")
}

func TestTheRestrictedStandardIsEnforced(t *testing.T) {
	namespace := newNamespace(t, "refusing", restricted)
	startServer(t, namespace)
	pod := meshedPod(t, namespace, "web", nil, "127.0.0.1:1")
	granting := strings.Replace(pod, "drop: [ALL]", "drop: [ALL], add: [NET_ADMIN]", 1)
	if err := tryApply(t, granting); granting == pod || err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted`) {
		t.Errorf("a pod with NET_ADMIN: %v, want that it violates the Standard", err)
	}
}

// target is an address that meshed pods dial.
type target struct {
	addr, direct string // who answers without redirection
	excluded     bool   // by the mesh
	service      bool
}

// Meshed pods that differ in an annotation dial the same addresses, of each family: two ports of another pod and a service.
func TestWhereTheTrafficOfMeshedPodsGoes(t *testing.T) {
	installDetour(t)
	ips, vips := startServer(t, newNamespace(t, "outside"))
	var targets []target
	var addrs []string
	for i := range ips {
		targets = append(targets,
			target{addr: net.JoinHostPort(ips[i], "8001"), direct: "outside 8001"},
			target{addr: net.JoinHostPort(ips[i], "9000"), direct: "outside 9000", excluded: true},
			target{addr: net.JoinHostPort(vips[i], "8000"), direct: "outside 9000", service: true},
		)
	}
	for _, to := range targets {
		addrs = append(addrs, to.addr)
	}
	tests := []struct {
		pod               string
		annotation, value string
		services          bool // are excluded
		inbound           bool // port 9090 is excluded
	}{
		{pod: "meshed"},
		{pod: "port", annotation: "outbound-port-exclusion-list", value: "8000", services: true},
		{pod: "ranges", annotation: "outbound-ip-range-exclusion-list", value: vips[0] + "/32," + vips[1] + "/128", services: true},
		{pod: "inbound", annotation: "inbound-port-exclusion-list", value: "9090", inbound: true},
	}
	namespace := newNamespace(t, "shop", restricted)
	for _, tt := range tests {
		annotations := map[string]string{}
		if tt.annotation != "" {
			annotations["openservicemesh.io/"+tt.annotation] = tt.value
		}
		apply(t, meshedPod(t, namespace, tt.pod, annotations, addrs...))
	}
	for _, tt := range tests {
		waitReady(t, namespace, tt.pod)
		for _, to := range targets {
			want := "proxy 15001 original " + to.addr
			if to.excluded || to.service && tt.services {
				want = to.direct
			}
			wantLine(t, namespace, tt.pod, to.addr+": "+want)
		}
		for _, ip := range podIPs(t, namespace, tt.pod) {
			wantInbound(t, ip, 8080, false)
			wantInbound(t, ip, 9090, tt.inbound)
			wantInbound(t, ip, 9091, true) // by the mesh
		}
	}
}

// wantInbound wants that a connection to a meshed pod's application goes through its proxy, or not.
func wantInbound(t *testing.T, ip string, port int, excluded bool) {
	t.Helper()
	want := "proxy 15003 original " + net.JoinHostPort(ip, strconv.Itoa(port))
	if excluded {
		want = fmt.Sprint("app ", port)
	}
	wantAnswer(t, ip, port, want)
}

func TestAnUnmeshedPodIsLeftAlone(t *testing.T) {
	installDetour(t)
	ips, _ := startServer(t, newNamespace(t, "outside-unmeshed"))
	namespace := newNamespace(t, "unmeshed", restricted)
	startClient(t, namespace, ips[0]+":8001")
	wantLine(t, namespace, "client", ips[0]+":8001: outside 8001")
	wantSkipped(t, namespace, "client", `it has no container "envoy"`)
	if found := rules(t, namespace, "client"); found != "" {
		t.Errorf("there are rules: %s", found)
	}
	startMeshed(t, namespace, "web")
	if rules(t, namespace, "web") == "" {
		t.Error("a meshed pod has no rules either")
	}
}

func TestNothingIsLeftOfADeletedPod(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "short", restricted)
	startMeshed(t, namespace, "web")
	wantNothingLeft(t, namespace, "web")
}
