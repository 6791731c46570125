package cniplugin_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agentapi"
	recorded "github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/rules"
)

// withAgent lets an agent answer lookups with the manifests of pod and configuration, each after a pause, and returns what it
// is told. Without a pod it has no answer.
func (a *attachment) withAgent(pod string, pauses ...func()) chan agentapi.Report {
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
	told := make(chan agentapi.Report, 200)
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			for requests := json.NewDecoder(conn); ; {
				var r agentapi.Request
				if requests.Decode(&r) != nil {
					break
				}
				if r.Report != nil {
					told <- *r.Report
				}
				answer := agentapi.Answer{Pod: podJSON, Config: configJSON}
				if pod == "" {
					answer = agentapi.Answer{Error: "not now"}
				}
				for _, pause := range pauses {
					pause()
				}
				_ = json.NewEncoder(conn).Encode(answer)
			}
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
	if r.Namespace != "shop" || r.Name != "web" || r.UID != "uid-1" || r.Outcome != "programmed" || r.Code != 0 || r.Stages["apply"] <= 0 || r.Fallback {
		t.Errorf("reported %+v", r)
	}
	if why, there := a.logged()[0]["fallback"]; there {
		t.Errorf("the log has a fallback: %v", why)
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
	line := a.logged()[0]
	if why, _ := line["fallback"].(string); line["level"] != "INFO" || !strings.Contains(why, "the agent does not answer: dial unix "+a.path("nobody.sock")) {
		t.Errorf("logged %v", line)
	}
	a.must("CHECK")
	a.must("DEL")
	a.untouched()
}

func TestAFallbackIsReportedToTheAgent(t *testing.T) {
	t.Parallel()
	for outcome, pod := range map[recorded.Outcome]http.HandlerFunc{"programmed": object(meshedPod()), "failed": answer(403, "Forbidden", "may not get pods")} {
		a := newAttachment(t)
		told := a.withAgent("") // it has no answer
		apiServer(t, a, map[string]http.HandlerFunc{podURL: pod})
		if _, err := a.run("ADD"); (err == nil) != (outcome == "programmed") {
			t.Errorf("ADD: %v", err)
		}
		if r := <-told; !r.Fallback || r.Outcome != outcome {
			t.Errorf("reported %+v", r)
		}
		if why, _ := a.logged()[0]["fallback"].(string); why != "ask the agent for pod shop/web: not now" {
			t.Errorf("logged fallback %q", why)
		}
	}
}

// A busy agent is waited for: what goes past it is what an API server has to bear when a node starts its pods.
func TestAHundredAddsAtOnceDoNotGoPastAnAgentThatIsSlow(t *testing.T) {
	t.Parallel()
	a := newAttachment(t)
	var past atomic.Int32
	apiServer(t, a, map[string]http.HandlerFunc{podURL: func(w http.ResponseWriter, r *http.Request) {
		past.Add(1)
		object(meshedPod())(w, r)
	}})
	a.withAgent(strings.Replace(meshedPod(), "name: envoy", "name: none", 1), func() { time.Sleep(10 * time.Millisecond) }) // one after the other
	a.conf["timeout"] = "10m"
	var all sync.WaitGroup
	for i := range 100 {
		cmd := a.command("ADD")
		cmd.Env = append(cmd.Env, fmt.Sprintf("CNI_CONTAINERID=c%d", i))
		all.Go(func() {
			if out, err := cmd.Output(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	if n := past.Load(); n != 0 {
		t.Errorf("%d of 100 went past the agent", n)
	}
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
