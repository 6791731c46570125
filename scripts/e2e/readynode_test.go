//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/detour-cni/detour/scripts/e2e/image"
)

// readyNode is what a pod selects that lost its mesh's init container.
const readyNode = `detour.io/ready: "true"`

// selectingPod is a meshed pod that selects ready nodes; more is for its spec and its selector.
func selectingPod(t *testing.T, namespace, name, spec, selector, addr string) string {
	t.Helper()
	pod := meshedPod(t, namespace, name, nil, addr)
	return strings.Replace(pod, "\nspec:", fmt.Sprintf("\nspec:\n  %s\n  nodeSelector: {%s%s}", spec, readyNode, selector), 1)
}

// wantLabelled wants that the node has the label, or hasn't, within some time.
func wantLabelled(t *testing.T, node string, labelled bool) {
	t.Helper()
	want := map[bool]string{true: "true"}[labelled]
	eventually(t, func() error {
		got, err := tryKubectl(t, "get", "node", node, "-o", `jsonpath={.metadata.labels.detour\.io/ready}`)
		if err == nil && got != want {
			err = fmt.Errorf("node %s has detour.io/ready=%q, want %q", node, got, want)
		}
		return err
	})
}

// wantPending wants that the scheduler has no node for so many of the namespace's pods, because of their selector.
func wantPending(t *testing.T, namespace string, pods int) {
	t.Helper()
	const messages = `jsonpath={range .items[*]}{.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}{end}`
	eventually(t, func() error {
		got, err := tryKubectl(t, "get", "pods", "--namespace", namespace, "--field-selector=spec.nodeName=", "-o", messages)
		if err == nil && strings.Count(got, "didn't match Pod's node affinity/selector") != pods {
			err = fmt.Errorf("the pods without a node wait because %q, want that the selector of %d matches none", got, pods)
		}
		return err
	})
}

// wantNoPodWhereDetourIsNot is to be called while both nodes have no agent, as they have not its image. The near one gets it.
func (p nodePath) wantNoPodWhereDetourIsNot(t *testing.T) {
	namespace := newNamespace(t, "ready-nodes", restricted)
	addr := p.server + ":80"
	direct, proxied := addr+": nginx 80", fmt.Sprintf("%[1]s: proxy 15001 original %[1]s", addr)
	onNear := "nodeName: " + p.near.Name()
	wantLabelled(t, "node", true)

	// Where the scheduler may choose, it chooses the node with detour.
	const anywhere = 4
	for i := range anywhere {
		apply(t, selectingPod(t, namespace, fmt.Sprint("anywhere-", i), "", "", outsideAddr))
	}
	for i := range anywhere {
		wantMeshed(t, namespace, fmt.Sprint("anywhere-", i))
		if got := nodeOf(t, namespace, fmt.Sprint("anywhere-", i)); got != "node" {
			t.Errorf("a pod that selects ready nodes is on %s", got)
		}
	}
	// Without the selector a pod starts unmeshed; with it the kubelet refuses the pod.
	apply(t, strings.Replace(meshedPod(t, namespace, "careless", nil, addr), "\nspec:", "\nspec:\n  "+onNear, 1))
	wantLine(t, namespace, "careless", direct)
	apply(t, selectingPod(t, namespace, "chosen", onNear, "", addr))
	eventually(t, func() error {
		got := kubectl(t, "get", "pod", "--namespace", namespace, "chosen", "-o", "jsonpath={.status.phase} {.status.reason}: {.status.message}")
		if !strings.HasPrefix(got, "Failed NodeAffinity: ") {
			return fmt.Errorf("the pod for a node without detour is %s", got)
		}
		t.Log("the pod for a node without detour is", got)
		return nil
	})
	kubectl(t, "delete", "pods", "--namespace", namespace, "--all", "--now")

	// Pods wait for the agent, and all of them start meshed: wantLine fails for one that dials directly.
	const waiting = 20
	var all strings.Builder
	for i := range waiting {
		all.WriteString("---\n" + selectingPod(t, namespace, fmt.Sprint("late-", i), "", ", kubernetes.io/hostname: "+p.near.Name(), addr))
	}
	apply(t, all.String())
	wantPending(t, namespace, waiting)
	must(t, image.Import(p.near.Shell(t.Context(), image.ImportScript), imageOf(detourImage, folder("BIN"))))
	// The kubelet would take its time to look for the image again.
	kubectl(t, "delete", "pod", "--namespace", "detour-system", "--selector="+agentLabel, "--field-selector=spec.nodeName="+p.near.Name())
	kubectl(t, "wait", "--namespace", namespace, "--for=condition=Ready", "--timeout="+atMost.String(), "--all", "pod")
	for i := range waiting {
		wantLine(t, namespace, fmt.Sprint("late-", i), proxied)
	}
	kubectl(t, "delete", "pods", "--namespace", namespace, "--all", "--now")

	// A node on which detour can't be installed any more.
	const conf = "/etc/cni/net.d/10-flannel.conflist"
	p.on(p.near, "mv "+conf+" /opt")
	t.Cleanup(func() { _ = p.near.Shell(context.Background(), "mv /opt/10-flannel.conflist "+conf).Run() }) // if it is still there
	wantLabelled(t, p.near.Name(), false)
	apply(t, selectingPod(t, namespace, "again", "", ", kubernetes.io/hostname: "+p.near.Name(), addr))
	wantPending(t, namespace, 1)
	p.on(p.near, "mv /opt/10-flannel.conflist "+conf)
	waitReady(t, namespace, "again")
	wantLine(t, namespace, "again", proxied)
	kubectl(t, "delete", "pods", "--namespace", namespace, "--all", "--now")
}
