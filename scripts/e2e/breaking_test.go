//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// breakable is a cluster whose parts can be taken away.
type breakable interface {
	Restart(ctx context.Context, component string) error
	StopAPIServer() error
	StartAPIServer(ctx context.Context) error
	Reboot(ctx context.Context) error
}

// mustBreak skips the test on a cluster that can't be broken on purpose.
func mustBreak(t *testing.T) breakable {
	t.Helper()
	b, ok := kubernetes.(breakable)
	if !ok {
		t.Skip("this cluster can't be broken on purpose")
	}
	return b
}

func TestComponentsCanBeRestarted(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	namespace := newNamespace(t, "restarts", restricted)
	for _, name := range []string{"containerd", "kubelet", "kube-proxy"} {
		must(t, b.Restart(t.Context(), name))
		startMeshed(t, namespace, "after-"+name)
	}
}

func TestAMeshedPodIsMeshedAfterAReboot(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	namespace := newNamespace(t, "rebooted", restricted)
	startMeshed(t, namespace, "web")
	shell(t, "touch /run/before")
	must(t, b.Reboot(t.Context()))
	if out := shell(t, "ls /run/before /run/netns/cni-* 2>/dev/null || :"); strings.Contains(out, "before") {
		t.Errorf("after the reboot there is still %s", out)
	}
	eventually(t, func() error {
		restarts, err := tryKubectl(t, "get", "pod", "--namespace", namespace, "web", "-o", "jsonpath={.status.containerStatuses[*].restartCount}")
		if counts := strings.Fields(restarts); err == nil && (len(counts) != 2 || slices.Contains(counts, "0")) {
			err = fmt.Errorf("the containers were restarted %q times, want both again", restarts)
		}
		return err
	})
	wantMeshed(t, namespace, "web")
	wantInbound(t, podIPs(t, namespace, "web")[0], 8080, false)
}

// With the API server down, pods answer as before, and one that the agent's cache knows gets a new sandbox, meshed.
func TestPodsAreMeshedWithoutAPIServer(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	namespace := newNamespace(t, "headless", restricted)
	startMeshed(t, namespace, "web")
	first := lastAdd(t, namespace, "web")
	ip := podIPs(t, namespace, "web")[0]
	must(t, b.StopAPIServer())
	if _, err := tryKubectl(t, "get", "namespaces", "--request-timeout=1s"); err == nil {
		t.Error("the API server is stopped and answers")
	}
	wantInbound(t, ip, 8080, false)
	shell(t, "ctr --namespace k8s.io task kill --signal KILL "+first.ContainerID)
	eventually(t, func() error {
		if add := lastAdd(t, namespace, "web"); add.ContainerID == first.ContainerID || add.Outcome != "programmed" {
			return errors.New("the pod has no new sandbox yet")
		}
		return nil
	})
	must(t, b.StartAPIServer(t.Context()))
	eventually(t, func() error { // the status tells the new address when the kubelet gets to it
		ip := podIPs(t, namespace, "web")[0]
		got, err := dial(t, ip, 8080)
		if want := fmt.Sprintf("proxy 15003 original %s:8080", ip); err == nil && got != want {
			err = fmt.Errorf("got %q, want %q", got, want)
		}
		return err
	})
	startMeshed(t, namespace, "afterwards")
}
