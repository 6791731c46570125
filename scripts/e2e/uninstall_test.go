//go:build e2e

package e2e

import "testing"

// Last of all: afterwards the node is as it was before detour, and what was meshed is.
func TestUninstallTakesOutExactlyWhatIsOurs(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "uninstalled", restricted)
	startMeshed(t, namespace, "web")
	kubectl(t, "apply", "-k", "../../deploy/uninstall")
	rollout(t)
	if left := cniFiles(t); left != untouched {
		t.Errorf("the files are\n%s\nand were\n%s", left, untouched)
	}
	startServer(t, namespace)
	wantInbound(t, podIPs(t, namespace, "web")[0], 8080, false)
}
