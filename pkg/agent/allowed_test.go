package agent

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/cniplugin"
	"github.com/detour-cni/detour/pkg/nettest"
)

// ADD gets no answer and lets a pod start unmeshed. Then the agent programs the pod, and the attachment's CHECK and DEL find what
// the agent did.
func TestAPodThatWasAllowedToStartIsRepairedForItsOwnCheckAndDel(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := agenttest.NewServer(t)
	a := newTestAgent(t, s, func(c *Config) { c.Repair, c.NetnsDir = repair.InPlace, agenttest.RuntimeDir(t, w.Pod.Path()) })
	dead := agenttest.NewServer(t)
	dead.SetDown(true)
	conf, err := json.Marshal(agenttest.Fields{
		"cniVersion": "1.0.0", "name": "pods", "type": "detour", "mesh": "osm", "kubeconfig": dead.Kubeconfig(t),
		"stateDir": a.conf.StateDir, "onError": "allow", "timeout": "1s", "logFile": t.TempDir() + "/log",
		"prevResult": agenttest.Fields{"cniVersion": "1.0.0", "ips": []agenttest.Fields{{"address": nettest.PodIPv4.String() + "/24"}, {"address": nettest.PodIPv6.String() + "/64"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	args := &skel.CmdArgs{
		ContainerID: "c1", Netns: w.Pod.Path(), IfName: nettest.PodLink, StdinData: conf,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=uid-a",
	}
	verbs := cniplugin.Funcs()
	if err := verbs.Add(args); err != nil {
		t.Fatal(err)
	}
	args.StdinData = bytes.Replace(conf, []byte(`"timeout":"1s"`), []byte(`"timeout":"1m"`), 1) // a busy machine is no reason to fail
	key := attachment.Key{Network: "pods", ContainerID: "c1", IfName: nettest.PodLink}
	if r, err := a.store().Load(key); err != nil || r.Outcome != attachment.Allowed {
		t.Fatalf("record %+v, %v", r, err)
	}
	wantNoRules(t, w)

	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	stop := start(t, a)
	agenttest.Eventually(t, "it is programmed", func() bool {
		_, text := get(a, "/metrics")
		return strings.Contains(text, `detour_repairs_total{mode="in-place",result="programmed"} 1`) && strings.Contains(text, "\ndetour_pods_unprogrammed 0\n")
	})
	if r, err := a.store().Load(key); err != nil || r.Outcome != attachment.Programmed || r.Netns != w.Pod.Path() {
		t.Errorf("record %+v, %v", r, err)
	}
	if keys, _ := a.store().Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("there is another record: %v", keys)
	}
	agenttest.Eventually(t, "its owner is told", func() bool {
		posts := s.Written("POST", "/api/v1/namespaces/shop/events")
		return len(posts) == 1 && posts[0].Body["reason"] == "DetourRepaired" && strings.Contains(posts[0].Body["message"].(string), "onError is allow")
	})

	stop() // it would program the pod again after DEL, as the test's API server still has it
	if err := verbs.Check(args); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if err := w.Pod.Do(func() error { return exec.Command("iptables", "-t", "nat", "-F", "PROXY_OUTPUT").Run() }); err != nil {
		t.Fatal(err)
	}
	if err := verbs.Check(args); err == nil || !strings.Contains(err.Error(), "PROXY_OUTPUT") {
		t.Errorf("CHECK of rules that were changed: %v", err)
	}
	if err := verbs.Del(args); err != nil {
		t.Errorf("DEL: %v", err)
	}
	wantNoRules(t, w)
	if _, err := a.store().Load(key); err == nil {
		t.Error("DEL has left the record")
	}
}
