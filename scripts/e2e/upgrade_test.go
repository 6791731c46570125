//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/scripts/upgrade"
)

// release is a version that can be installed, with pods that run since then.
type release struct {
	name, bin string
	manifests map[string]string // kustomizations, by the backend that they choose
}

// From the previous version to this one and back, while pods run, start and end; then this version takes out what the previous one has
// installed.
func TestUpgradeAndTheWayBack(t *testing.T) {
	previous, this := previousRelease(t), release{name: "this", bin: folder("BIN"), manifests: map[string]string{}}
	for _, b := range backends {
		this.manifests[b.name] = "../../testdata/e2e/" + b.kustomization
	}
	importDetour(t, detourImage, folder("BIN"))
	osm.configure(t)
	uninstallDetour(t)
	namespace := newNamespace(t, "upgraded", restricted)
	kubectl(t, "wait", "--namespace", namespace, "--for=create", "configmap/kube-root-ca.crt", "--timeout="+atMost.String())
	before := footprint(t)

	var running []kept
	for _, r := range []release{previous, this, previous} {
		serial := fmt.Sprint(r.name, "-", len(running))
		startMeanwhile(t, namespace, serial, func() error { return r.apply(t, backends[0].name) })
		r.wantInstalled(t)
		for _, pod := range running {
			pod.wantUntouched(t)
			pod.wantFine(t, previous)
			pod.wantFine(t, this)
		}
		// Those that another version has started end, and these run on.
		for pod := range strings.FieldsSeq(kubectl(t, "get", "pods", "--namespace", namespace, "--output=name", "--selector=app!=kept")) {
			wantNothingLeft(t, namespace, strings.TrimPrefix(pod, "pod/"))
		}
		for _, b := range backends {
			must(t, r.apply(t, b.name))
			startMeshed(t, namespace, serial+"-ends-"+b.name)
			running = append(running, startKept(t, namespace, serial+"-"+b.name, b.name))
		}
	}
	removeWebhook(t)
	kubectl(t, "apply", "-k", "../../deploy/uninstall")
	rollout(t)
	for _, pod := range running {
		pod.wantUntouched(t)
	}
	kubectl(t, "delete", "pods", "--namespace", namespace, "--all", "--now")
	eventually(t, func() error {
		_, err := output(kubernetes.Shell(t.Context(), "! test -e /opt/cni/bin/detour"))
		return err
	})
	uninstallDetour(t)
	eventually(t, func() error { return different(footprint(t), before) })
}

// previousRelease builds the version before this one. Its image has a name of its own.
func previousRelease(t *testing.T) release {
	t.Helper()
	version := upgrade.Versions(t)[0]
	t.Logf("the previous version is %s", version)
	dir := upgrade.Build(t, version)
	r := release{"previous", filepath.Join(dir, "bin"), map[string]string{}}
	importDetour(t, "docker.io/library/detour:previous", r.bin)
	for _, b := range backends {
		r.manifests[b.name] = filepath.Join(dir, "testdata/e2e/previous-"+b.kustomization)
		must(t, os.Mkdir(r.manifests[b.name], 0o700))
		must(t, os.WriteFile(filepath.Join(r.manifests[b.name], "kustomization.yaml"), []byte("resources: [../"+b.kustomization+"]\n"+
			"images: [{name: ghcr.io/detour-cni/detour, newName: docker.io/library/detour, newTag: previous}]\n"), 0o600))
	}
	return r
}

// apply installs the release and waits until all nodes have it.
func (r release) apply(t *testing.T, backend string) error {
	if _, err := tryKubectl(t, "apply", "-k", r.manifests[backend]); err != nil {
		return err
	}
	return tryRollout(t)
}

// wantInstalled wants that the node has the release's plugin.
func (r release) wantInstalled(t *testing.T) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(r.bin, "detour"))
	must(t, err)
	if got := shell(t, "cat /opt/cni/bin/detour"); got != string(want) {
		t.Errorf("the plugin of %s is not installed", r.name)
	}
}

// startMeanwhile starts a pod about every second while something changes, and one more. All of them must be meshed.
func startMeanwhile(t *testing.T, namespace, name string, change func() error) {
	t.Helper()
	changed := make(chan error, 1)
	go func() { changed <- change() }()
	if _, err := tryKubectl(t, "get", "daemonset", "--namespace", "detour-system", "detour-agent"); err != nil {
		must(t, <-changed) // the first installation: nobody waits for it
		return
	}
	var pods []string
	for changing := true; changing; {
		select {
		case err := <-changed:
			must(t, err)
			changing = false // after one more
		case <-time.After(time.Second):
		}
		pods = append(pods, fmt.Sprint(name, "-meanwhile-", len(pods)))
		apply(t, meshedPod(t, namespace, pods[len(pods)-1], nil, outsideAddr))
	}
	for _, pod := range pods {
		wantMeshed(t, namespace, pod)
	}
	t.Logf("%d pods were started meanwhile", len(pods))
}

// kept is a pod with an open connection through its proxy.
type kept struct {
	namespace, name, backend string
	ask                      func()
	programmed               string
}

func startKept(t *testing.T, namespace, name, backend string) kept {
	t.Helper()
	startMeshed(t, namespace, name)
	kubectl(t, "label", "pod", "--namespace", namespace, name, "app=kept", "--overwrite")
	ask := stay(t, podIPs(t, namespace, name)[0], 8080)
	return kept{namespace, name, backend, ask, programmed(t, namespace, name)}
}

// wantUntouched wants that nobody has programmed the pod again, and that its connection is open.
func (k kept) wantUntouched(t *testing.T) {
	t.Helper()
	k.ask()
	if now := programmed(t, k.namespace, k.name); now != k.programmed {
		t.Errorf("pod %s was\n%s\nand is\n%s", k.name, k.programmed, now)
	}
}

// wantFine wants that the release's detourctl says that the pod is as it should be.
func (k kept) wantFine(t *testing.T, r release) {
	t.Helper()
	program, err := os.ReadFile(filepath.Join(r.bin, "detourctl"))
	must(t, err)
	writeOnNode(t, "/opt/detourctl", "755", program)
	got := shell(t, "/opt/detourctl verify "+k.namespace+"/"+k.name+" || :; rm /opt/detourctl")
	if !strings.Contains(got, " fine") || !strings.Contains(got, " "+k.backend+" ") {
		t.Errorf("verify of %s says %q, want %s and fine", r.name, got, k.backend)
	}
}

// wantNothingLeft deletes a pod and waits until nothing of it is left, by a DEL that could do all it wanted.
func wantNothingLeft(t *testing.T, namespace, pod string) {
	t.Helper()
	added := lastAdd(t, namespace, pod)
	list := fmt.Sprintf("find /run/netns /run/detour/attachments -name '%s*' -o -name '%s'", added.ContainerID, path.Base(added.Netns))
	if got := strings.Count(shell(t, list), "\n"); got != 2 {
		t.Fatalf("%s listed %d things, want the pod's network namespace and its attachment", list, got)
	}
	kubectl(t, "delete", "pod", "--namespace", namespace, pod, "--now")
	eventually(t, func() error {
		if left := shell(t, list); left != "" {
			return fmt.Errorf("of the deleted pod there is still %s", left)
		}
		return nil
	})
	if said := shell(t, "grep -F "+added.ContainerID+" /var/log/detour.log | grep -F del-incomplete || :"); said != "" {
		t.Errorf("DEL says %s", said)
	}
}
