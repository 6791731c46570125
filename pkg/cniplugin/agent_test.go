package cniplugin_test

import (
	"encoding/json"
	"net"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/rules"
)

// withAgent lets an agent answer lookups with the manifests of pod and configuration, and returns what it is told.
func (a *attachment) withAgent(pod string) chan agentapi.Report {
	a.t.Helper()
	delete(a.conf, "manifests")
	a.conf["agentSocket"] = a.path("agent.sock")
	l, err := net.Listen("unix", a.path("agent.sock"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { l.Close() })
	podJSON, err := yaml.YAMLToJSON([]byte(pod))
	if err != nil {
		a.t.Fatal(err)
	}
	configJSON, err := yaml.YAMLToJSON([]byte(meshConfig))
	if err != nil {
		a.t.Fatal(err)
	}
	told := make(chan agentapi.Report, 10)
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			var r agentapi.Request
			_ = json.NewDecoder(conn).Decode(&r)
			if r.Report != nil {
				told <- *r.Report
			}
			_ = json.NewEncoder(conn).Encode(agentapi.Answer{Pod: podJSON, Config: configJSON})
			conn.Close()
		}
	}()
	return told
}

func TestAddThroughTheAgentProgramsAndReports(t *testing.T) {
	t.Parallel()
	a := newAttachment(t)
	told := a.withAgent(meshedPod())
	a.must("STATUS")
	a.must("ADD")
	a.must("CHECK")
	if len(a.rules(rules.IPv4)) == 0 {
		t.Error("nothing was programmed")
	}
	r := <-told
	if r.Namespace != "shop" || r.Name != "web" || r.UID != "uid-1" || r.Outcome != "programmed" || r.Code != 0 || r.Stages["apply"] <= 0 {
		t.Errorf("reported %+v", r)
	}
	a.must("DEL")
	a.untouched()
}

func TestARefusalIsReportedWithItsCode(t *testing.T) {
	t.Parallel()
	a := newAttachment(t)
	told := a.withAgent(meshedPod(`outbound-port-exclusion-list: "x"`))
	a.fails("ADD", 100, "outbound-port-exclusion-list")
	if r := <-told; r.Outcome != "failed" || r.Code != 100 || !strings.Contains(r.Reason, `entry 1 "x"`) {
		t.Errorf("reported %+v", r)
	}
	a.untouched()
}

func TestWithoutAnAgentTheAPIServerIsAsked(t *testing.T) {
	t.Parallel()
	a := newAttachment(t)
	apiServer(t, a, nil)
	a.conf["agentSocket"] = a.path("nobody.sock")
	a.must("STATUS")
	a.must("ADD")
	a.must("CHECK")
	a.must("DEL")
	a.untouched()
}

func TestWithNobodyToAskThePodDoesNotStart(t *testing.T) {
	t.Parallel()
	a := newAttachment(t)
	delete(a.conf, "manifests")
	a.conf["agentSocket"], a.conf["timeout"] = a.path("nobody.sock"), "300ms"
	if err := os.Remove(a.path("manifests.yaml")); err != nil {
		t.Fatal(err)
	}
	a.fails("ADD", 11, "nobody.sock", "is detour-agent running on this node?")
	a.fails("STATUS", 50, "nobody.sock")
	a.untouched()
}
