//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// Last of all: afterwards the node is as it was before detour.
func TestUninstallTakesOutExactlyWhatIsOurs(t *testing.T) {
	installDetour(t)
	kubectl(t, "apply", "-k", "../../deploy/uninstall")
	eventually(t, func() error {
		if got := plugins(t); slices.Contains(got, "detour") {
			return fmt.Errorf("the chain is %v", got)
		}
		if left := shell(t, "ls /opt/cni/bin/detour /etc/cni/net.d/*detour* 2>/dev/null || :"); left != "" {
			return errors.New("there is still " + left)
		}
		return nil
	})
	rollout(t)
	if got := plugins(t); len(got) == 0 {
		t.Error("the node's own network is gone")
	}
	namespace := newNamespace(t, "after-uninstall", restricted)
	apply(t, manifest(t, "server.yaml", map[string]string{"NAMESPACE": namespace, "IMAGE": workloadImage}))
	waitReady(t, namespace, "server")
}
