package agent

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// object reads a section of a scenario as the API server has it.
func object(t testing.TB, c testcase.Case, section, namespace, uid string) agenttest.Fields {
	t.Helper()
	var o agenttest.Fields
	if err := yaml.Unmarshal([]byte(c.Section(section)), &o); err != nil {
		t.Fatal(err)
	}
	o["metadata"].(agenttest.Fields)["namespace"], o["metadata"].(agenttest.Fields)["uid"] = namespace, uid
	return o
}

func TestAPodIsProgrammedInPlace(t *testing.T) {
	t.Parallel()
	for _, scenario := range []string{"osm/guide", "osm/ranges-of-both-families"} {
		t.Run(scenario, func(t *testing.T) {
			t.Parallel()
			w, other := nettest.StartWorld(t), nettest.StartNamespace(t, "other")
			c := testcase.Find(t, "../..", scenario)
			p := object(t, c, "pod.yaml", "shop", "uid-web")
			p["spec"].(agenttest.Fields)["nodeName"] = "n1"
			p["status"] = agenttest.Pod("x")["status"]
			name := p["metadata"].(agenttest.Fields)["name"].(string)
			s := agenttest.NewServer(t)
			s.Put(agenttest.PodPath("shop", name), p)
			s.Put(agenttest.ConfigPath, object(t, c, "meshconfig.yaml", "osm-system", "uid-config"))
			a := newTestAgent(t, s, func(conf *Config) {
				conf.Repair = repair.InPlace
				conf.NetnsDir = agenttest.RuntimeDir(t, w.Pod.Path(), other.Path())
			})
			stale := attachment.RepairKey("gone", "eth0")
			save(t, a, attachment.Record{Key: stale, Pod: "shop/gone", PodUID: "gone", Netns: w.Pod.Path(), Outcome: attachment.Programmed})
			start(t, a)
			agenttest.Eventually(t, "it is programmed", func() bool {
				_, text := get(a, "/metrics")
				return strings.Contains(text, `detour_repairs_total{mode="in-place",result="programmed"} 1`) && strings.Contains(text, "\ndetour_pods_unprogrammed 0\n")
			})
			packets, err := nettest.ParsePackets(c.Section("packets"))
			if err != nil {
				t.Fatal(err)
			}
			nettest.CheckPackets(t, w, packets, 15001, 15003)
			record, err := a.store().Load(attachment.RepairKey("uid-web", nettest.PodLink))
			if err != nil || record.PodUID != "uid-web" || record.Pod != "shop/"+name || record.Outcome != attachment.Programmed || len(record.Payload) == 0 || record.Backend == "" {
				t.Errorf("record %+v, %v", record, err)
			}
			if _, err := a.store().Load(stale); err == nil {
				t.Error("the record of a pod that is gone is there")
			}
			agenttest.Eventually(t, "an Event", func() bool {
				posts := s.Written("POST", "/api/v1/namespaces/shop/events")
				return len(posts) == 1 && posts[0].Body["reason"] == "DetourRepaired" && posts[0].Body["type"] == "Normal"
			})
			time.Sleep(5 * hasty.repair.Sweep)
			if _, text := get(a, "/metrics"); !strings.Contains(text, `result="programmed"} 1`) {
				t.Error("it was programmed again")
			}
			s.Put(agenttest.PodPath("shop", name), nil)
			agenttest.Eventually(t, "the record goes with the pod", func() bool {
				keys, err := a.store().Keys(attachment.RepairNetwork)
				return err == nil && len(keys) == 0
			})
		})
	}
}

// What the net conf says of the gate holds for the repair as well: here the proxy has sent nothing since.
func TestTheRepairKeepsTheGate(t *testing.T) {
	t.Parallel()
	nettest.RequireProgram(t, "nft")
	w := nettest.StartWorld(t)
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, func(c *Config) {
		c.Gated, c.Repair, c.NetnsDir = true, repair.InPlace, agenttest.RuntimeDir(t, w.Pod.Path())
	})
	start(t, a)
	var record attachment.Record
	agenttest.Eventually(t, "it is programmed", func() (ok bool) {
		var err error
		record, err = a.store().Load(attachment.RepairKey("uid-a", nettest.PodLink))
		return err == nil
	})
	if record.Backend != nftables.Name {
		t.Errorf("the backend is %s", record.Backend)
	}
	var table []byte
	err := w.Pod.Do(func() (err error) {
		table, err = exec.Command("nft", "list", "set", "inet", "detour", "armed").CombinedOutput()
		return err
	})
	if err != nil || strings.Contains(string(table), "elements") {
		t.Errorf("the gate does not wait: %v\n%s", err, table)
	}
}

func TestAPodWhoseNamespaceIsUncertainIsNotProgrammed(t *testing.T) {
	t.Parallel()
	one, two := nettest.StartWorld(t), nettest.StartWorld(t)
	tests := []struct {
		name  string
		paths []string
		words string
	}{
		{"none", nil, "has 10.77.0.2 and fd77::2"},
		{"another's", []string{one.Outside.Path()}, "has 10.77.0.2 and fd77::2"},
		{"two", []string{one.Pod.Path(), two.Pod.Path()}, "both have 10.77.0.2 and fd77::2"},
	}
	for _, tt := range tests {
		s := agenttest.NewServer(t)
		dir := agenttest.RuntimeDir(t, tt.paths...)
		a := newTestAgent(t, s, func(c *Config) { c.Repair, c.NetnsDir = repair.InPlace, dir })
		start(t, a)
		s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
		s.Put(agenttest.ConfigPath, agenttest.Config())
		agenttest.Eventually(t, "the owner is told", func() bool {
			posts := s.Written("POST", "/api/v1/namespaces/shop/events")
			return len(posts) > 0 && strings.Contains(posts[0].Body["message"].(string), tt.words)
		})
		wantMetrics(t, a, "detour_pods_unprogrammed 1")
		if keys, _ := a.store().Keys(attachment.RepairNetwork); len(keys) > 0 {
			t.Errorf("%s: record %v", tt.name, keys)
		}
	}
}

func wantNoRules(t *testing.T, w *nettest.World) {
	t.Helper()
	if rules := agenttest.Rules(t, w); rules != nil {
		t.Errorf("rules are there:\n%s", strings.Join(rules, "\n"))
	}
}
