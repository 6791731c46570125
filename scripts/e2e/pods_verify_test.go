//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// The whole way: from a laptop to the kernel of the pod's node, the kubelet's status by the agent's cache, and the mesh's configuration.
func TestVerifySaysWhetherAPodIsAsItShouldBe(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "verified", restricted)
	startMeshed(t, namespace, "web")
	pod := []string{"verify", "pod/web", "--namespace=" + namespace}
	wantVerified := func(code int, want string, args ...string) {
		t.Helper()
		eventually(t, func() error { // the agent watches the API server
			got := detour(t, args...)
			if got.code != code || !strings.Contains(got.out, want) {
				return fmt.Errorf("got %+v, want %d and %q", got, code, want)
			}
			return nil
		})
	}
	wantVerified(0, " fine", pod...)

	exclude := func(ports string) {
		t.Helper()
		kubectl(t, "patch", "meshconfigs.config.openservicemesh.io", "osm-mesh-config", "--namespace=osm-system", "--type=merge",
			"--patch", `{"spec":{"traffic":{"outboundPortExclusionList":[`+ports+`]}}}`)
	}
	exclude("9000,7000")
	defer exclude("9000")
	wantVerified(1, "drifted: MeshConfig spec.traffic.outboundPortExclusionList has 7000 today; the pod was programmed without it", pod...)
	wantVerified(1, namespace+"/web", "verify", "node/"+nodeOf(t, namespace, "web"))

	rules := "iptables -t nat -F PROXY_IN_REDIRECT || nft flush chain inet detour PROXY_IN_REDIRECT"
	shell(t, "nsenter --net="+lastAdd(t, namespace, "web").Netns+" sh -c '"+rules+"'")
	wantVerified(1, "rule-missing: ", pod...)
}
