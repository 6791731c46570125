package agent

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/nettest"
)

// ADD's records stay even when the API server no longer has their pods: DEL comes later and needs them.
func TestOnlyRecordsOfRepairsGoWithTheirPods(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, func(c *Config) { c.Repair, c.NetnsDir = repair.InPlace, t.TempDir() })
	ordinary, repair := attachment.Key{Network: "pods", ContainerID: "1", IfName: "eth0"}, attachment.RepairKey("uid-b", "eth0")
	save(t, a, attachment.Record{Key: ordinary, Pod: "shop/a", PodUID: "uid-a", Netns: "/proc/self/ns/net", Outcome: attachment.Programmed})
	save(t, a, attachment.Record{Key: repair, Pod: "shop/b", PodUID: "uid-b", Netns: "/proc/self/ns/net", Outcome: attachment.Programmed})
	start(t, a)
	agenttest.Eventually(t, "the repair's record goes", func() bool { _, err := a.store().Load(repair); return err != nil })
	if _, err := a.store().Load(ordinary); err != nil {
		t.Errorf("so does the record of an ADD: %v", err)
	}
}

// A kubelet creates the folder of a hostPath readable by everybody.
func TestAFolderThatIsThereIsClosedToOthers(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	a := newTestAgent(t, agenttest.NewServer(t), nil)
	if err := os.Chmod(a.conf.StateDir, 0o755); err != nil {
		t.Fatal(err)
	}
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.socket.Serving() })
	if info, err := os.Stat(a.conf.StateDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
}

// This holds even if the API server ignores the field selector.
func TestOnlyTheConfigurationOfTheNameCounts(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	another := agenttest.Config()
	another["metadata"].(agenttest.Fields)["name"] = "osm-preset-mesh-config"
	another["spec"] = agenttest.Fields{"traffic": agenttest.Fields{"outboundPortExclusionList": []int{4444}}}
	s.Refuse["GET "+agenttest.CollectionOf(agenttest.ConfigPath)] = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("watch") {
			s.List(w, r)
			return
		}
		agenttest.Reply(w, 200, agenttest.Fields{
			"kind": "MeshConfigList", "apiVersion": "config.openservicemesh.io/v1alpha2",
			"metadata": agenttest.Fields{"resourceVersion": "1000"}, "items": []agenttest.Fields{agenttest.Config(), another},
		})
	}
	nettest.RequireNetns(t) // root: the socket serves nobody else
	a := newTestAgent(t, s, nil)
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	if answer := ask(t, a, "a", "uid-a"); !strings.Contains(string(answer.Config), "6379") {
		t.Errorf("got %s", answer.Config)
	}
}

// An address on an interface that is down does not count: here another namespace has a copy of the pod's.
func TestOnlyLinksThatAreUpTellAPodsNamespace(t *testing.T) {
	t.Parallel()
	w, other := nettest.StartWorld(t), nettest.StartNamespace(t, "down")
	nettest.RequireProgram(t, "ip")
	script := fmt.Sprintf("ip link add eth0 type veth peer name end; ip addr add %s/24 dev eth0; ip -6 addr add %s/64 dev eth0 nodad", nettest.PodIPv4, nettest.PodIPv6)
	err := other.Do(func() error {
		out, err := exec.Command("sh", "-ec", script).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, func(c *Config) {
		c.Repair, c.NetnsDir = repair.InPlace, agenttest.RuntimeDir(t, w.Pod.Path(), other.Path())
	})
	start(t, a)
	agenttest.Eventually(t, "the pod is programmed", func() bool {
		return slices.Contains(agenttest.Rules(t, w), "-A OUTPUT -p tcp -j PROXY_OUTPUT")
	})
}
