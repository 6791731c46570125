//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// An init container has a network although there is no proxy yet, and from the proxy's first packet on, which here answers
// somebody outside, the application is meshed.
func TestRedirectionBeginsWithTheProxysFirstPacket(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "gated", restricted)
	ips, _ := startServer(t, namespace)
	addr := ips[0] + ":8001"
	apply(t, manifest(t, "gated.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage, "ADDR": addr}))
	waitReady(t, namespace, "web")
	wantLast := func(container, want string) {
		t.Helper()
		eventually(t, func() error {
			log, err := tryKubectl(t, "logs", "--namespace", namespace, "web", "--container", container, "--tail=1")
			if got := strings.TrimSpace(log); err == nil && got != want {
				err = fmt.Errorf("container %s said %q, want %q", container, got, want)
			}
			return err
		})
	}
	wantLast("migrate", addr+": outside 8001")
	wantLast("app", addr+": outside 8001")
	wantInbound(t, podIPs(t, namespace, "web")[0], 8080, false)
	wantLast("app", fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr))
}
