//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// outsideAddr is an address that nobody has.
const outsideAddr = "203.0.113.1:80"

// startMeshed starts a meshed pod that dials outsideAddr, and waits until it did so through its proxy.
func startMeshed(t *testing.T, namespace, name string) {
	t.Helper()
	apply(t, manifest(t, "meshed.yaml", map[string]string{
		"NAMESPACE": namespace, "NAME": name, "IMAGE": workloadImage, "PROXY": "envoy", "ADDRS": outsideAddr,
	}))
	waitReady(t, namespace, name)
	wantLine(t, namespace, name, fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", outsideAddr))
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

func TestPodsAnswerWithoutAPIServer(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	namespace := newNamespace(t, "headless", restricted)
	startMeshed(t, namespace, "web")
	ip := podIPs(t, namespace, "web")[0]
	must(t, b.StopAPIServer())
	if _, err := output(kubernetes.Kubectl(t.Context(), "get", "namespaces", "--request-timeout=1s")); err == nil {
		t.Error("the API server is stopped and answers")
	}
	wantAnswer(t, ip, 8080, fmt.Sprintf("proxy 15003 original %s:8080", ip))
	must(t, b.StartAPIServer(t.Context()))
	startMeshed(t, namespace, "afterwards")
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
		restarts := kubectl(t, "get", "pod", "--namespace", namespace, "web", "-o", "jsonpath={.status.containerStatuses[*].restartCount}")
		if restarts != "1 1" {
			return fmt.Errorf("the containers were restarted %q times, want once each", restarts)
		}
		return nil
	})
	waitReady(t, namespace, "web")
	wantLine(t, namespace, "web", fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", outsideAddr))
	ip := podIPs(t, namespace, "web")[0]
	wantAnswer(t, ip, 8080, fmt.Sprintf("proxy 15003 original %s:8080", ip))
}

// With the API server down, a pod that the agent's cache knows gets a new sandbox, meshed.
func TestAKnownPodStartsMeshedWithoutAPIServer(t *testing.T) {
	b := mustBreak(t)
	installDetour(t)
	namespace := newNamespace(t, "known", restricted)
	startMeshed(t, namespace, "web")
	must(t, b.StopAPIServer())
	const added = `grep -c '"pod":"known/web".*"outcome":"programmed"' /var/log/detour.log || :`
	before := shell(t, added)
	shell(t, `id=$(ctr -n k8s.io containers list 'labels."io.kubernetes.pod.namespace"==known,labels."io.cri-containerd.kind"==sandbox' -q)
		ctr -n k8s.io task kill --signal KILL "$id"`)
	eventually(t, func() error {
		if shell(t, added) == before {
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
}
