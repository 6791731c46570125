package cniplugin_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/rules"
)

// delAsCRIO deletes an attachment as CRI-O does: by the configuration that libcni has kept since the ADD, not the node's present one.
func (n *node) delAsCRIO(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	n.t.Helper()
	text, kept, err := n.cni.GetNetworkListCachedConfig(list, rt)
	if err != nil || text == nil {
		n.t.Fatalf("libcni has kept %q, %v", text, err)
	}
	was, err := libcni.NetworkConfFromBytes(text)
	if err != nil {
		n.t.Fatal(err)
	}
	n.del(was, kept)
}

// Whatever became of the node's configuration and of the pod since the ADD, nothing is left of the pod after CRI-O's DEL.
func TestCRIODeletesByTheConfigurationOfTheAdd(t *testing.T) {
	subnet := []string{"10.88.0.0/24", "fd88::/64"}
	for name, since := range map[string]func(n *node, a *attachment) *libcni.NetworkConfigList{
		"detour was uninstalled": func(n *node, _ *attachment) *libcni.NetworkConfigList {
			return n.chain("1.1.0", "net", "cni0", subnet)
		},
		"detour was configured for another mesh and backend": func(n *node, a *attachment) *libcni.NetworkConfigList {
			a.file("manifests.yaml", "")
			n.conf["mesh"], n.conf["backend"] = "istio", "nftables"
			return n.network("1.1.0", "net", "cni0", subnet...)
		},
		"the network has another CNI version": func(n *node, _ *attachment) *libcni.NetworkConfigList {
			return n.network("0.4.0", "net", "cni0", subnet...)
		},
		"the record is lost": func(n *node, a *attachment) *libcni.NetworkConfigList {
			a.must("GC")
			return n.network("1.1.0", "net", "cni0", subnet...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			n := startNode(t, a)
			list, rt := n.network("1.1.0", "net", "cni0", subnet...), a.runtimeConf("eth0")
			n.do("STATUS", func() error { return n.cni.GetStatusNetworkList(t.Context(), list) })
			n.add(list, rt)
			if len(a.rules(rules.IPv4)) == 0 {
				t.Fatal("the pod is not programmed")
			}
			n.delAsCRIO(since(n, a), rt)
			a.empty()
			n.del(list, rt) // again, as after a failure of another plugin
			a.empty()
		})
	}
}

// The kubelet's next attempt may come with the same network namespace, after a DEL.
func TestAnAddAfterAFailedOne(t *testing.T) {
	for name, spoilt := range map[string]string{
		"refused":       meshedPod(`outbound-port-exclusion-list: "x"`),
		"not found yet": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, spoilt, meshConfig)
			n := startNode(t, a)
			list, rt := n.network("1.1.0", "net", "cni0", "10.88.0.0/24"), a.runtimeConf("eth0")
			for range 2 {
				if err := n.ns.Do(func() error { _, err := n.cni.AddNetworkList(t.Context(), list, rt); return err }); err == nil {
					t.Fatal("ADD succeeded")
				}
				n.del(list, rt)
				a.empty()
			}
			a.file("manifests.yaml", meshedPod()+"\n---\n"+meshConfig)
			n.add(list, rt)
			n.check(list, rt)
			n.del(list, rt)
			a.empty()
		})
	}
}

// A runtime may name the namespace by a process of the pod, and by a file later.
func TestTheNamespaceHasTwoNames(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	n := startNode(t, a)
	var pause *exec.Cmd
	if err := a.ns.Do(func() error { pause = exec.Command("sleep", "600"); return pause.Start() }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pause.Process.Kill(); _ = pause.Wait() })
	list := n.network("1.1.0", "net", "cni0", "10.88.0.0/24")
	byFile, byProcess := a.runtimeConf("eth0"), a.runtimeConf("eth0")
	byProcess.NetNS = fmt.Sprintf("/proc/%d/ns/net", pause.Process.Pid)
	n.add(list, byProcess)
	n.check(list, byProcess)
	if locks, err := os.ReadDir(a.path("state/namespaces")); err != nil || len(locks) != 1 {
		t.Errorf("there are the locks %v, %v, want one", locks, err)
	}
	n.del(list, byFile)
	a.empty()
}
