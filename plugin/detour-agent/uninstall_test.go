package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/nettest"
)

const meshedPod = `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1},
  spec: {containers: [{name: app}, {name: envoy, securityContext: {runAsUser: 1500}}]}}`

// runtimeNode is a node with a network of bridge, host-local and detour, and a runtime that uses libcni.
type runtimeNode struct {
	t      *testing.T
	dir    string
	ns     *nettest.Namespace
	cni    *libcni.CNIConfig
	before string // the list without detour
}

func startRuntimeNode(t *testing.T) *runtimeNode {
	t.Helper()
	nettest.RequireNetns(t)
	n := &runtimeNode{t: t, dir: t.TempDir(), ns: nettest.StartNamespace(t, "node")}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.path("bin")}, n.path("cache"), nil)
	n.before = fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "bridge": "cni0",
  "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}`, n.path("ipam"))
	put(t, n.path("net.d/10-net.conflist"), n.before)
	put(t, n.path("token"), "the token")
	for _, plugin := range []string{"bridge", "host-local"} {
		program, err := exec.CommandContext(t.Context(), "go", "tool", "-n", plugin).Output()
		if err != nil {
			t.Fatalf("build %s: %v", plugin, err)
		}
		put(t, n.path("bin/"+plugin), "")
		if err := os.Remove(n.path("bin/" + plugin)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(strings.TrimSpace(string(program)), n.path("bin/"+plugin)); err != nil {
			t.Fatal(err)
		}
	}
	entry, err := json.Marshal(map[string]string{
		"type": "detour", "mesh": "osm", "backend": "nftables", "stateDir": n.path("run"),
		"manifests": put(t, n.path("pod.yaml"), meshedPod), "logFile": n.path("log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	i, err := install.New(install.Config{
		Plugin: self, BinDir: n.path("bin"), ConfDir: n.path("net.d"), Entry: entry,
		Kubeconfig: &install.Kubeconfig{HostDir: "/etc/cni/net.d", Server: "https://10.96.0.1:443", TokenFile: n.path("token")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.Reconcile(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *runtimeNode) path(name string) string { return filepath.Join(n.dir, name) }

// list is the node's present configuration.
func (n *runtimeNode) list() *libcni.NetworkConfigList {
	n.t.Helper()
	list, err := libcni.ConfListFromFile(n.path("net.d/10-net.conflist"))
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// add starts a pod and returns what the runtime knows of it. end removes the pod's namespace.
func (n *runtimeNode) add(list *libcni.NetworkConfigList) (pod *libcni.RuntimeConf, end func()) {
	n.t.Helper()
	ns := nettest.StartNamespace(n.t, "pod")
	pod = &libcni.RuntimeConf{
		ContainerID: "c1", NetNS: ns.Path(), IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web"}, {"K8S_POD_UID", "uid-1"}},
	}
	if err := n.ns.Do(func() error { _, err := n.cni.AddNetworkList(n.t.Context(), list, pod); return err }); err != nil {
		n.t.Fatal(err)
	}
	if got := n.addresses(); len(got) != 1 {
		n.t.Fatalf("the pod has the addresses %q", got)
	}
	return pod, func() {
		if err := ns.Close(); err != nil {
			n.t.Error(err)
		}
	}
}

// del ends a pod: with the configuration that it was started with, as CRI-O does, or the present one, as containerd does.
func (n *runtimeNode) del(pod *libcni.RuntimeConf, remembered bool) {
	n.t.Helper()
	list := n.list()
	if remembered {
		text, rt, err := n.cni.GetNetworkListCachedConfig(list, pod)
		if err != nil {
			n.t.Fatal(err)
		}
		if list, err = libcni.ConfListFromBytes(text); err != nil {
			n.t.Fatal(err)
		}
		pod = rt
	}
	if err := n.ns.Do(func() error { return n.cni.DelNetworkList(n.t.Context(), list, pod) }); err != nil {
		n.t.Errorf("DEL: %v", err)
	}
	if got := n.addresses(); len(got) > 0 {
		n.t.Errorf("after DEL the addresses %q are taken", got)
	}
}

// addresses are those that host-local has given away.
func (n *runtimeNode) addresses() []string {
	n.t.Helper()
	found, err := filepath.Glob(n.path("ipam/net/10.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	return found
}

// uninstalling is `detour-agent uninstall` that goes on.
type uninstalling struct {
	log   buffer
	ended chan error
	stop  func()
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (n *runtimeNode) options() uninstallOptions {
	return uninstallOptions{
		folders: folders{bin: n.path("bin"), conf: n.path("net.d")}, stateDir: n.path("run"), cacheDir: n.path("cache/results"), pause: 10 * time.Millisecond,
	}
}

func (n *runtimeNode) uninstall() *uninstalling {
	u := &uninstalling{ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(n.t.Context())
	u.stop = stop
	go func() { u.ended <- n.options().run(ctx, &u.log) }()
	return u
}

func (n *runtimeNode) has(name string) bool {
	_, err := os.Lstat(n.path(name))
	return err == nil
}

// wantUninstalled wants that the pods that are left are all that keeps the binary.
func (n *runtimeNode) wantUninstalled(binary bool) {
	n.t.Helper()
	text, err := os.ReadFile(n.path("net.d/10-net.conflist"))
	if err != nil || string(text) != n.before {
		n.t.Errorf("the list is %s, %v", text, err)
	}
	for name, want := range map[string]bool{
		"net.d/detour-token": false, "net.d/detour-kubeconfig": false, "bin/detour": binary, "run": binary, "bin/bridge": true,
	} {
		if n.has(name) != want {
			n.t.Errorf("%s is there: %t, want %t", name, !want, want)
		}
	}
}

// The entry and the credentials go at once, the binary with the last pod that was started with it.
func TestUninstallLeavesTheBinaryForPodsToEnd(t *testing.T) {
	for runtime, remembered := range map[string]bool{"CRI-O": true, "containerd": false} {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			n := startRuntimeNode(t)
			pod, end := n.add(n.list())
			u := n.uninstall()
			eventually(t, "it waits", func() bool { return strings.Contains(u.log.String(), `"pods":["shop/web"]`) || len(u.ended) > 0 })
			n.wantUninstalled(true)
			n.del(pod, remembered)
			if !remembered {
				time.Sleep(50 * time.Millisecond)
				n.wantUninstalled(true) // the runtime may fail and call DEL again as long as the namespace stands
				end()
			}
			if err := <-u.ended; err != nil {
				t.Error(err)
			}
			n.wantUninstalled(false)
			if got := strings.Count(u.log.String(), "\n"); got != 2 {
				t.Errorf("the log has %d lines, want that it waits and that it is done:\n%s", got, u.log.String())
			}
		})
	}
}

// Whoever is told to stop, or only to do what can be done now, leaves the binary; another run goes on.
func TestUninstallMayBeInterrupted(t *testing.T) {
	t.Parallel()
	n := startRuntimeNode(t)
	pod, end := n.add(n.list())
	u := n.uninstall()
	eventually(t, "it waits", func() bool { return strings.Contains(u.log.String(), "shop/web") })
	u.stop()
	if err := <-u.ended; err != nil {
		t.Error(err)
	}
	n.wantUninstalled(true)
	once := n.options()
	once.once = true
	if err := once.run(t.Context(), &u.log); err != nil {
		t.Error(err)
	}
	n.wantUninstalled(true)
	n.del(pod, true)
	end()
	if err := once.run(t.Context(), &u.log); err != nil {
		t.Error(err)
	}
	n.wantUninstalled(false)
}

// With the label, the scheduler still sends pods that would start unmeshed.
func TestUninstallLeavesEverythingIfTheLabelCanNotBeRemoved(t *testing.T) {
	t.Parallel()
	n := startRuntimeNode(t)
	o := n.options()
	o.unmarkNode = true
	if err := o.run(t.Context(), t.Output()); err == nil || !strings.Contains(err.Error(), "take the label") {
		t.Errorf("without a node's name and a credential: %v", err)
	}
	for _, p := range n.list().Plugins {
		if p.Network.Type == "detour" && n.has("net.d/detour-token") && n.has("bin/detour") {
			return
		}
	}
	t.Error("the entry, the token or the binary is gone")
}

// After the node's restart nothing is left of the plugin's state, but a runtime may still end a pod with what libcni keeps of it.
func TestUninstallKnowsWhatTheRuntimeKeeps(t *testing.T) {
	t.Parallel()
	n := startRuntimeNode(t)
	pod, end := n.add(n.list())
	if err := os.RemoveAll(n.path("run/attachments")); err != nil {
		t.Fatal(err)
	}
	end()
	once := n.options()
	once.once = true
	var log buffer
	if err := once.run(t.Context(), &log); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), `"pods":["shop/web"]`) {
		t.Errorf("the log is %s", log.String())
	}
	n.wantUninstalled(true)
	n.del(pod, true)
	if err := once.run(t.Context(), &log); err != nil {
		t.Error(err)
	}
	n.wantUninstalled(false)
}

// Nobody calls the plugin for the end of a pod that was started without it, be it repaired or not.
func TestAPodThatWasStartedWithoutDetourKeepsNoBinary(t *testing.T) {
	t.Parallel()
	n := startRuntimeNode(t)
	without, err := libcni.ConfListFromBytes([]byte(n.before))
	if err != nil {
		t.Fatal(err)
	}
	n.add(without)
	record := attachment.Record{Key: attachment.RepairKey("uid-1", "eth0"), Netns: n.ns.Path(), Pod: "shop/web", Outcome: attachment.Programmed}
	if err := attachment.NewStore(n.path("run")).Save(record); err != nil {
		t.Fatal(err)
	}
	once := n.options()
	once.once = true
	if err := once.run(t.Context(), t.Output()); err != nil {
		t.Error(err)
	}
	n.wantUninstalled(false)
}
