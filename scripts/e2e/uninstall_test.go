//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Last of all: afterwards no pod starts with detour, what was meshed is, and once the last pod has ended that was started with
// detour, the node is as it was before.
func TestUninstallTakesOutExactlyWhatIsOurs(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "uninstalled", restricted)
	startMeshed(t, namespace, "web")
	apply(t, selectingPod(t, namespace, "selecting", "", "", outsideAddr))
	wantMeshed(t, namespace, "selecting")
	removeWebhook(t)
	kubectl(t, "apply", "-k", "../../deploy/uninstall")

	// The label goes before the entry, which stays for a pod that selects it.
	wantLabelled(t, nodeOf(t, namespace, "web"), false)
	eventually(t, func() error {
		log, err := tryKubectl(t, "logs", "--namespace", "detour-system", "--selector="+agentLabel, "--container=uninstall", "--tail=-1")
		if err == nil && !strings.Contains(log, `"pods":["`+namespace+`/selecting"]`) {
			err = fmt.Errorf("the log does not say which pod detour stays for: %s", log)
		}
		return err
	})
	apply(t, selectingPod(t, namespace, "later", "", "", outsideAddr))
	wantPending(t, namespace, 1)
	if got := plugins(t); !slices.Contains(got, "detour") {
		t.Errorf("a pod that selects the label is there, and the chain is %v", got)
	}
	startServer(t, namespace) // others start, although no agent runs, and the last one's token ended with it
	kubectl(t, "delete", "pod", "--namespace", namespace, "selecting", "--now")
	rollout(t)
	if got := plugins(t); slices.Contains(got, "detour") {
		t.Errorf("the chain is %v", got)
	}
	if left := cniFiles(t); !strings.Contains(left, "/opt/cni/bin/detour") || strings.Contains(left, "detour-token") {
		t.Errorf("the binary has gone before the pod, or the token has not:\n%s", left)
	}
	eventually(t, func() error {
		log := kubectl(t, "logs", "--namespace", "detour-system", "--selector="+agentLabel, "--tail=-1")
		if !strings.Contains(log, namespace+"/web") {
			return fmt.Errorf("the log does not say which pods need the binary: %s", log)
		}
		return nil
	})
	wantInbound(t, podIPs(t, namespace, "web")[0], 8080, false)
	kubectl(t, "delete", "pod", "--namespace", namespace, "web", "server", "--now") // both were started with detour
	eventually(t, func() error {
		if left := cniFiles(t); left != untouched {
			return fmt.Errorf("the files are\n%s\nand were\n%s", left, untouched)
		}
		return nil
	})
	eventually(t, func() error {
		if left := shell(t, "ls -A /run/detour"); left != "" {
			return fmt.Errorf("in /run/detour there is %s", left)
		}
		return nil
	})
}

// removeWebhook removes the webhook, whose pods were started with detour.
func removeWebhook(t *testing.T) {
	t.Helper()
	kubectl(t, "delete", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "webhook.detour.io")
	kubectl(t, "delete", "deployment", "--namespace", "detour-system", "detour-webhook")
}
