package agent

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
)

// found lists the names of the unprogrammed pods.
func found(t testing.TB, a *Agent) []string {
	t.Helper()
	all, err := a.unprogrammed(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range all {
		names = append(names, f.pod.name)
	}
	slices.Sort(names)
	return names
}

func save(t testing.TB, a *Agent, r attachment.Record) {
	t.Helper()
	r.IfName, r.Mesh = "eth0", "osm"
	if err := a.store.Save(r); err != nil {
		t.Fatal(err)
	}
}

// lookOnce keeps the sweep from running by itself.
func lookOnce(a *Agent) *Agent {
	a.timing.sweep = time.Hour
	return a
}

func TestWhichPodsAreUnprogrammed(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	for name, change := range map[string]func(meta, spec, status fields){
		"unprogrammed": func(_, _, _ fields) {},
		"refused": func(meta, _, _ fields) {
			meta["annotations"] = fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
		},
		"recorded":         func(_, _, _ fields) {},
		"allowed":          func(_, _, _ fields) {},
		"left-alone":       func(_, _, _ fields) {},
		"second-interface": func(_, _, _ fields) {},
		"allowed-refused": func(meta, _, _ fields) {
			meta["annotations"] = fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
		},
		"static":     func(meta, _, _ fields) { meta["annotations"] = fields{"kubernetes.io/config.mirror": "hash"} },
		"by-name":    func(_, _, _ fields) {},
		"replaced":   func(_, _, _ fields) {},
		"not-meshed": func(_, spec, _ fields) { spec["containers"] = []fields{{"name": "app"}} },
		"own-init": func(_, spec, _ fields) {
			spec["initContainers"] = []fields{{"name": "osm-init", "securityContext": fields{"privileged": true}}}
		},
		"host-network":     func(_, spec, _ fields) { spec["hostNetwork"] = true },
		"pending":          func(_, _, status fields) { status["phase"] = "Pending" },
		"ended":            func(_, _, status fields) { status["phase"] = "Succeeded" },
		"deleting":         func(meta, _, _ fields) { meta["deletionTimestamp"] = ago(time.Minute) },
		"young":            func(_, _, status fields) { status["containerStatuses"] = running(ago(0)) },
		"before-the-start": func(_, _, status fields) { status["containerStatuses"] = running(ago(48 * time.Hour)) },
		"only-init": func(_, _, status fields) {
			status["initContainerStatuses"], status["containerStatuses"] = status["containerStatuses"], nil
		},
		"nothing-runs": func(_, _, status fields) { status["containerStatuses"] = nil },
	} {
		p := testPod(name)
		change(p["metadata"].(fields), p["spec"].(fields), p["status"].(fields))
		s.put(podPath("shop", name), p)
	}
	excluded := testPod("excluded")
	excluded["metadata"].(fields)["namespace"] = "kube-system"
	s.put(podPath("kube-system", "excluded"), excluded)
	s.put(configPath, testConfig())

	a := lookOnce(newTestAgent(t, s, nil))
	a.booted = time.Now().Add(-24 * time.Hour)
	a.timing.settle = 30 * time.Second
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
	eventually(t, "the first sweep", func() bool {
		_, text := get(a, "/metrics")
		return strings.Contains(text, "\ndetour_pods_unprogrammed 6\n")
	})
	if got, want := found(t, a), []string{"allowed", "allowed-refused", "only-init", "refused", "replaced", "unprogrammed"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	eventually(t, "six Events", func() bool { return len(s.written("POST", "/api/v1/namespaces/shop/events")) == 6 })
	for _, e := range s.written("POST", "/api/v1/namespaces/shop/events") {
		name := e.body["involvedObject"].(fields)["name"].(string)
		message := e.body["message"].(string)
		if e.body["reason"] != "DetourUnprogrammed" || e.body["type"] != "Warning" || strings.Contains(message, `"x"`) != strings.HasSuffix(name, "refused") ||
			strings.Contains(message, "onError is allow") != strings.HasPrefix(name, "allowed") || strings.Contains(message, "(no API server)") != (name == "allowed") {
			t.Errorf("Event %v", e.body)
		}
	}
	if n := s.count("POST /api/v1/namespaces/shop/pods"); n != 0 {
		t.Errorf("%d pods were evicted although only reports are wanted", n)
	}
}

func running(since string) []fields {
	return []fields{{"name": "app", "state": fields{"running": fields{"startedAt": since}}}}
}

func TestWithoutTheConfigurationNobodyIsCalledUnprogrammed(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	s.served = nil
	s.put(podPath("shop", "a"), testPod("a"))
	a := newTestAgent(t, s, func(c *Config) { c.Repair = Evict })
	start(t, a)
	eventually(t, "it is known that there is none", func() bool { return a.pods.isSynced() && a.config.settled() })
	time.Sleep(100 * time.Millisecond)
	if n := s.count("POST"); n != 0 {
		t.Errorf("%d writes", n)
	}
}

func TestEvictionRespectsBudgets(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	bare := testPod("bare")
	delete(bare["metadata"].(fields), "ownerReferences")
	s.put(podPath("shop", "bare"), bare)
	static := testPod("static")
	static["metadata"].(fields)["annotations"] = fields{"kubernetes.io/config.mirror": "hash"}
	s.put(podPath("shop", "static"), static)
	s.put(podPath("shop", "free"), testPod("free"))
	s.put(podPath("shop", "kept"), testPod("kept"))
	s.put(configPath, testConfig())
	s.refuse["POST "+podPath("shop", "kept")+"/eviction"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "10") // which client-go would wait for by itself
		refusal(429, "TooManyRequests")(w, r)
	}
	s.put(podPath("shop", "allowed"), testPod("allowed"))
	malformed := testPod("malformed")
	malformed["metadata"].(fields)["annotations"] = fields{"openservicemesh.io/outbound-port-exclusion-list": "x"}
	s.put(podPath("shop", "malformed"), malformed)
	a := newTestAgent(t, s, func(c *Config) { c.Repair = Evict })
	for _, name := range []string{"allowed", "malformed"} {
		save(t, a, attachment.Record{Key: attachment.Key{Network: "one", ContainerID: name}, Pod: "shop/" + name, PodUID: "uid-" + name, Outcome: attachment.Allowed})
	}
	start(t, a)
	eventually(t, "the pod that was allowed to start is evicted", func() bool { return len(s.written("POST", podPath("shop", "allowed")+"/eviction")) > 0 })
	eventually(t, "the free pod is evicted", func() bool { return len(s.written("POST", podPath("shop", "free")+"/eviction")) > 0 })
	body := s.written("POST", podPath("shop", "free"))[0].body
	if body["apiVersion"] != "policy/v1" || body["kind"] != "Eviction" || body["deleteOptions"].(fields)["preconditions"].(fields)["uid"] != "uid-free" {
		t.Errorf("eviction %v", body)
	}
	s.put(podPath("shop", "free"), nil)
	eventually(t, "the budget is asked again", func() bool { return s.count("POST "+podPath("shop", "kept")+"/eviction") > 2 })
	s.update(func() { clear(s.refuse) })
	eventually(t, "the budget gives way", func() bool { return len(s.written("POST", podPath("shop", "kept")+"/eviction")) > 0 })
	for _, name := range []string{"bare", "static", "malformed"} {
		if n := s.count("POST " + podPath("shop", name) + "/eviction"); n != 0 {
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
