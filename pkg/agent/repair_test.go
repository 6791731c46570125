package agent

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/attachment"
)

// found lists the names of the unprogrammed pods.
func found(t testing.TB, a *Agent) []string {
	t.Helper()
	all, err := a.repairer.Find(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range all {
		names = append(names, f.Pod.Name)
	}
	slices.Sort(names)
	return names
}

func save(t testing.TB, a *Agent, r attachment.Record) {
	t.Helper()
	r.IfName, r.Mesh = "eth0", "osm"
	if err := a.store().Save(r); err != nil {
		t.Fatal(err)
	}
}

// lookOnce keeps the sweep from running by itself.
func lookOnce(a *Agent) *Agent {
	a.repairer.Timing.Sweep = time.Hour
	return a
}

func TestWhichPodsAreUnprogrammed(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	for name, change := range map[string]func(meta, spec, status agenttest.Fields){
		"unprogrammed": func(_, _, _ agenttest.Fields) {},
		"refused": func(meta, _, _ agenttest.Fields) {
			meta["annotations"] = agenttest.Fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
		},
		"recorded":         func(_, _, _ agenttest.Fields) {},
		"allowed":          func(_, _, _ agenttest.Fields) {},
		"left-alone":       func(_, _, _ agenttest.Fields) {},
		"second-interface": func(_, _, _ agenttest.Fields) {},
		"allowed-refused": func(meta, _, _ agenttest.Fields) {
			meta["annotations"] = agenttest.Fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
		},
		"static": func(meta, _, _ agenttest.Fields) {
			meta["annotations"] = agenttest.Fields{"kubernetes.io/config.mirror": "hash"}
		},
		"by-name":    func(_, _, _ agenttest.Fields) {},
		"replaced":   func(_, _, _ agenttest.Fields) {},
		"not-meshed": func(_, spec, _ agenttest.Fields) { spec["containers"] = []agenttest.Fields{{"name": "app"}} },
		"own-init": func(_, spec, _ agenttest.Fields) {
			spec["initContainers"] = []agenttest.Fields{{"name": "osm-init", "securityContext": agenttest.Fields{"privileged": true}}}
		},
		"host-network": func(_, spec, _ agenttest.Fields) { spec["hostNetwork"] = true },
		"pending":      func(_, _, status agenttest.Fields) { status["phase"] = "Pending" },
		"ended":        func(_, _, status agenttest.Fields) { status["phase"] = "Succeeded" },
		"deleting":     func(meta, _, _ agenttest.Fields) { meta["deletionTimestamp"] = agenttest.Ago(time.Minute) },
		"young":        func(_, _, status agenttest.Fields) { status["containerStatuses"] = agenttest.Running(agenttest.Ago(0)) },
		"before-the-start": func(_, _, status agenttest.Fields) {
			status["containerStatuses"] = agenttest.Running(agenttest.Ago(48 * time.Hour))
		},
		"only-init": func(_, _, status agenttest.Fields) {
			status["initContainerStatuses"], status["containerStatuses"] = status["containerStatuses"], nil
		},
		"nothing-runs": func(_, _, status agenttest.Fields) { status["containerStatuses"] = nil },
	} {
		p := agenttest.Pod(name)
		change(p["metadata"].(agenttest.Fields), p["spec"].(agenttest.Fields), p["status"].(agenttest.Fields))
		s.Put(agenttest.PodPath("shop", name), p)
	}
	excluded := agenttest.Pod("excluded")
	excluded["metadata"].(agenttest.Fields)["namespace"] = "kube-system"
	s.Put(agenttest.PodPath("kube-system", "excluded"), excluded)
	s.Put(agenttest.ConfigPath, agenttest.Config())

	a := lookOnce(newTestAgent(t, s, nil))
	a.repairer.Booted = time.Now().Add(-24 * time.Hour)
	a.repairer.Timing.Settle = 30 * time.Second
	save(t, a, attachment.Record{Key: attachment.Key{Network: "one", ContainerID: "1"}, Pod: "shop/recorded", PodUID: "uid-recorded", Outcome: attachment.Programmed})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "2"}, Pod: "shop/allowed", PodUID: "uid-allowed", Outcome: attachment.Allowed, Reason: "no API server"})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "8"}, Pod: "shop/left-alone", PodUID: "uid-left-alone", Outcome: attachment.Skipped})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "9"}, Pod: "shop/second-interface", PodUID: "uid-second-interface", Outcome: attachment.Allowed})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "three", ContainerID: "9"}, Pod: "shop/second-interface", PodUID: "uid-second-interface", Outcome: attachment.Programmed})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "10"}, Pod: "shop/allowed-refused", PodUID: "uid-allowed-refused", Outcome: attachment.Allowed, Reason: "refused"})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "3"}, Pod: "shop/static", PodUID: "hash", Outcome: attachment.Programmed})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "4"}, Pod: "shop/by-name", Outcome: attachment.Programmed})
	save(t, a, attachment.Record{Key: attachment.Key{Network: "two", ContainerID: "5"}, Pod: "shop/replaced", PodUID: "uid-before", Outcome: attachment.Programmed})
	for _, junk := range []string{"one/6@eth0.json", "one/7@eth0.json.tmp", "one/other", "file"} {
		os.WriteFile(filepath.Join(a.conf.StateDir, "attachments", junk), []byte("{"), 0o600)
	}
	start(t, a)
	agenttest.Eventually(t, "the first sweep", func() bool {
		_, text := get(a, "/metrics")
		return strings.Contains(text, "\ndetour_pods_unprogrammed 6\n")
	})
	if got, want := found(t, a), []string{"allowed", "allowed-refused", "only-init", "refused", "replaced", "unprogrammed"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	agenttest.Eventually(t, "six Events", func() bool { return len(s.Written("POST", "/api/v1/namespaces/shop/events")) == 6 })
	for _, e := range s.Written("POST", "/api/v1/namespaces/shop/events") {
		name := e.Body["involvedObject"].(agenttest.Fields)["name"].(string)
		message := e.Body["message"].(string)
		if e.Body["reason"] != "DetourUnprogrammed" || e.Body["type"] != "Warning" || strings.Contains(message, `"x"`) != strings.HasSuffix(name, "refused") ||
			strings.Contains(message, "onError is allow") != strings.HasPrefix(name, "allowed") || strings.Contains(message, "(no API server)") != (name == "allowed") {
			t.Errorf("Event %v", e.Body)
		}
	}
	if n := s.Count("POST /api/v1/namespaces/shop/pods"); n != 0 {
		t.Errorf("%d pods were evicted although only reports are wanted", n)
	}
}

func TestWithoutTheConfigurationNobodyIsCalledUnprogrammed(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Served = nil
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	a := newTestAgent(t, s, func(c *Config) { c.Repair = repair.Evict })
	start(t, a)
	agenttest.Eventually(t, "it is known that there is none", func() bool { return a.cache.HasPods() && a.cache.HasConfig() })
	time.Sleep(100 * time.Millisecond)
	if n := s.Count("POST"); n != 0 {
		t.Errorf("%d writes", n)
	}
}

func TestEvictionRespectsBudgets(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	bare := agenttest.Pod("bare")
	delete(bare["metadata"].(agenttest.Fields), "ownerReferences")
	s.Put(agenttest.PodPath("shop", "bare"), bare)
	static := agenttest.Pod("static")
	static["metadata"].(agenttest.Fields)["annotations"] = agenttest.Fields{"kubernetes.io/config.mirror": "hash"}
	s.Put(agenttest.PodPath("shop", "static"), static)
	s.Put(agenttest.PodPath("shop", "free"), agenttest.Pod("free"))
	s.Put(agenttest.PodPath("shop", "kept"), agenttest.Pod("kept"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	s.Refuse["POST "+agenttest.PodPath("shop", "kept")+"/eviction"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "10") // which client-go would wait for by itself
		agenttest.Refusal(429, "TooManyRequests")(w, r)
	}
	s.Put(agenttest.PodPath("shop", "allowed"), agenttest.Pod("allowed"))
	malformed := agenttest.Pod("malformed")
	malformed["metadata"].(agenttest.Fields)["annotations"] = agenttest.Fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
	s.Put(agenttest.PodPath("shop", "malformed"), malformed)
	a := newTestAgent(t, s, func(c *Config) { c.Repair = repair.Evict })
	for _, name := range []string{"allowed", "malformed"} {
		save(t, a, attachment.Record{Key: attachment.Key{Network: "one", ContainerID: name}, Pod: "shop/" + name, PodUID: "uid-" + name, Outcome: attachment.Allowed})
	}
	start(t, a)
	agenttest.Eventually(t, "the pod that was allowed to start is evicted", func() bool { return len(s.Written("POST", agenttest.PodPath("shop", "allowed")+"/eviction")) > 0 })
	agenttest.Eventually(t, "the free pod is evicted", func() bool { return len(s.Written("POST", agenttest.PodPath("shop", "free")+"/eviction")) > 0 })
	body := s.Written("POST", agenttest.PodPath("shop", "free"))[0].Body
	if body["apiVersion"] != "policy/v1" || body["kind"] != "Eviction" || body["deleteOptions"].(agenttest.Fields)["preconditions"].(agenttest.Fields)["uid"] != "uid-free" {
		t.Errorf("eviction %v", body)
	}
	s.Put(agenttest.PodPath("shop", "free"), nil)
	agenttest.Eventually(t, "the budget is asked again", func() bool { return s.Count("POST "+agenttest.PodPath("shop", "kept")+"/eviction") > 2 })
	s.Update(func() { clear(s.Refuse) })
	agenttest.Eventually(t, "the budget gives way", func() bool { return len(s.Written("POST", agenttest.PodPath("shop", "kept")+"/eviction")) > 0 })
	for _, name := range []string{"bare", "static", "malformed"} {
		if n := s.Count("POST " + agenttest.PodPath("shop", name) + "/eviction"); n != 0 {
			t.Errorf("%s was evicted, and nothing would make it anew, or nothing that can be programmed", name)
		}
	}
	_, text := get(a, "/metrics")
	for _, words := range []string{`detour_repairs_total{mode="evict",result="evicted"}`, `result="refused-by-budget"`, `{mode="report",result="reported"}`} {
		if !strings.Contains(text, words) {
			t.Errorf("metrics lack %s", words)
		}
	}
}
