package cniplugin_test

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// node is a host's network namespace in which a container runtime drives the plugins by libcni, as containerd and CRI-O do.
type node struct {
	t    *testing.T
	ns   *nettest.Namespace
	cni  *libcni.CNIConfig
	conf map[string]any // of detour
	dir  string
}

func startNode(t *testing.T, a *attachment) *node {
	t.Helper()
	n := &node{t: t, ns: nettest.StartNamespace(t, "node"), dir: a.dir, cni: libcni.NewCNIConfigWithCacheDir([]string{binDir(t)}, a.path("cache"), nil)}
	n.conf = map[string]any{"type": "detour"}
	for _, field := range []string{"mesh", "manifests", "stateDir", "logFile"} {
		n.conf[field] = a.conf[field]
	}
	return n
}

// network is a chain of bridge, host-local and detour.
func (n *node) network(version, name, bridge string, subnets ...string) *libcni.NetworkConfigList {
	n.t.Helper()
	return n.chain(version, name, bridge, subnets, maps.Clone(n.conf))
}

// chain is a chain of bridge, host-local and other plugins.
func (n *node) chain(version, name, bridge string, subnets []string, behind ...any) *libcni.NetworkConfigList {
	n.t.Helper()
	var ranges [][]map[string]string
	for _, s := range subnets {
		ranges = append(ranges, []map[string]string{{"subnet": s}})
	}
	first := map[string]any{"type": "bridge", "bridge": bridge, "isGateway": true, "ipam": map[string]any{"type": "host-local", "dataDir": n.dir + "/ipam", "ranges": ranges}}
	data, err := json.Marshal(map[string]any{"cniVersion": version, "name": name, "plugins": append([]any{first}, behind...)})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// do runs a verb on the node; it must succeed.
func (n *node) do(verb string, run func() error) {
	n.t.Helper()
	if err := n.ns.Do(run); err != nil {
		n.t.Fatalf("%s: %v", verb, err)
	}
}

func (n *node) add(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	n.t.Helper()
	n.do("ADD", func() error { _, err := n.cni.AddNetworkList(n.t.Context(), list, rt); return err })
}

func (n *node) check(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	n.t.Helper()
	n.do("CHECK", func() error { return n.cni.CheckNetworkList(n.t.Context(), list, rt) })
}

func (n *node) del(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) {
	n.t.Helper()
	n.do("DEL", func() error { return n.cni.DelNetworkList(n.t.Context(), list, rt) })
}

func (n *node) gc(list *libcni.NetworkConfigList, valid ...types.GCAttachment) {
	n.t.Helper()
	n.do("GC", func() error {
		return n.cni.GCNetworkList(n.t.Context(), list, &libcni.GCArgs{ValidAttachments: valid})
	})
}

// runtimeConf is what a runtime passes of the attachment.
func (a *attachment) runtimeConf(ifName string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: a.env["CNI_CONTAINERID"], NetNS: a.ns.Path(), IfName: ifName,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web"}, {"K8S_POD_INFRA_CONTAINER_ID", "c1"}, {"K8S_POD_UID", "uid-1"}},
	}
}

// Every verb as libcni sends it. What a version does not have, libcni leaves out.
func TestLibcniDrivesEveryVerbInEveryVersion(t *testing.T) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			n := startNode(t, a)
			list, rt := n.network(version, "net", "cni0", "10.88.0.0/24", "fd88::/64"), a.runtimeConf("eth0")
			n.do("VALIDATE", func() error { _, err := n.cni.ValidateNetworkList(t.Context(), list); return err })
			n.do("STATUS", func() error { return n.cni.GetStatusNetworkList(t.Context(), list) })
			n.add(list, rt)
			want := a.rules(rules.IPv4)
			if len(want) == 0 || len(a.rules(rules.IPv6)) == 0 {
				t.Error("the pod is not programmed")
			}
			if version >= "0.4.0" {
				n.check(list, rt)
			}
			a.file("state/attachments/net/gone@eth0.json", "{}")
			n.gc(list, types.GCAttachment{ContainerID: rt.ContainerID, IfName: rt.IfName})
			if got := a.rules(rules.IPv4); !slices.Equal(got, want) {
				t.Errorf("after GC the pod has %q, not %q", got, want)
			}
			left := []string{"net/c1@eth0.json"}
			if version < "1.1.0" { // which has no GC
				left = append(left, "net/gone@eth0.json")
			}
			if got := a.records(); !slices.Equal(got, left) {
				t.Errorf("after GC there are %q, want %q", got, left)
			}
			n.del(list, rt)
			n.del(list, rt)
			n.gc(list)
			if got := a.records(); len(got) > 0 && version == "1.1.0" {
				t.Errorf("left: %q", got)
			}
			if got := append(a.rules(rules.IPv4), a.rules(rules.IPv6)...); len(got) > 0 {
				t.Errorf("left: %q", got)
			}
		})
	}
}

// A runtime that has lost sight of a pod has its attachments deleted by libcni, with GC's own list of what is valid.
func TestLibcniCollectsWhatIsNotValidAnyMore(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	n := startNode(t, a)
	list := n.network("1.1.0", "net", "cni0", "10.88.0.0/24")
	n.add(list, a.runtimeConf("eth0"))
	n.gc(list)
	a.untouched()
}

// Whatever else of CNI's own a runtime sends is not detour's to refuse, with any verb; a mistake of the user's is.
func TestKeysOfTheSpecificationAreTheRuntimes(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.conf["cni.dev/attachments"] = []map[string]string{{"containerID": "c1", "ifname": "eth0"}}
	a.conf["cni.dev/of-a-later-version"] = map[string]any{"x": 1}
	for _, verb := range []string{"STATUS", "ADD", "CHECK"} {
		a.must(verb)
	}
	a.conf["cni.dev/valid-attachments"] = a.conf["cni.dev/attachments"]
	a.must("GC")
	if got := a.records(); len(got) != 1 {
		t.Errorf("GC kept %q", got)
	}
	a.must("DEL")
	a.untouched()
	a.conf["example.com/attachments"] = 1
	a.fails("ADD", 7, "example.com/attachments: there is no such field")
	delete(a.conf, "example.com/attachments")
	a.conf["meshConfig"] = map[string]any{"cni.dev/x": 1}
	a.fails("ADD", 7, "cni.dev/x: there is no such field")
}
