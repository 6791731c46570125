package agent

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// runtimeDir is a folder of namespaces as the runtime keeps it, with these and with things that are none.
func runtimeDir(t testing.TB, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range append(paths, hostNamespace, "/proc/self/ns/mnt", "/nonexistent") {
		if err := os.Symlink(path, filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	return dir
}

// object reads a section of a scenario as the API server has it.
func object(t testing.TB, c testcase.Case, section, namespace, uid string) fields {
	t.Helper()
	var o fields
	if err := yaml.Unmarshal([]byte(c.Section(section)), &o); err != nil {
		t.Fatal(err)
	}
	o["metadata"].(fields)["namespace"], o["metadata"].(fields)["uid"] = namespace, uid
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
			p["spec"].(fields)["nodeName"] = "n1"
			p["status"] = testPod("x")["status"]
			name := p["metadata"].(fields)["name"].(string)
			s := newAPIServer(t)
			s.put(podPath("shop", name), p)
			s.put(configPath, object(t, c, "meshconfig.yaml", "osm-system", "uid-config"))
			a := newTestAgent(t, s, func(conf *Config) {
				conf.Repair = InPlace
				conf.NetnsDir = runtimeDir(t, w.Pod.Path(), other.Path())
			})
			stale := attachment.RepairKey("gone", "eth0")
			save(t, a, attachment.Record{Key: stale, Pod: "shop/gone", PodUID: "gone", Netns: w.Pod.Path(), Outcome: attachment.Programmed})
			start(t, a)
			eventually(t, "it is programmed", func() bool {
				_, text := get(a, "/metrics")
				return strings.Contains(text, `detour_repairs_total{mode="in-place",result="programmed"} 1`) && strings.Contains(text, "\ndetour_pods_unprogrammed 0\n")
			})
			packets, err := nettest.ParsePackets(c.Section("packets"))
			if err != nil {
				t.Fatal(err)
			}
			nettest.CheckPackets(t, w, packets, 15001, 15003)
			record, err := a.store.Load(attachment.RepairKey("uid-web", nettest.PodLink))
			if err != nil || record.PodUID != "uid-web" || record.Pod != "shop/"+name || record.Outcome != attachment.Programmed || len(record.Payload) == 0 || record.Backend == "" {
				t.Errorf("record %+v, %v", record, err)
			}
			if _, err := a.store.Load(stale); err == nil {
				t.Error("the record of a pod that is gone is there")
			}
			eventually(t, "an Event", func() bool {
				posts := s.written("POST", "/api/v1/namespaces/shop/events")
				return len(posts) == 1 && posts[0].body["reason"] == "DetourRepaired" && posts[0].body["type"] == "Normal"
			})
			time.Sleep(5 * hasty.sweep)
			if _, text := get(a, "/metrics"); !strings.Contains(text, `result="programmed"} 1`) {
				t.Error("it was programmed again")
			}
			s.put(podPath("shop", name), nil)
			eventually(t, "the record goes with the pod", func() bool { keys, err := a.store.Keys(attachment.RepairNetwork); return err == nil && len(keys) == 0 })
		})
	}
}

// findingOf is the pod of a test server, as the sweep finds it.
func findingOf(t *testing.T, a *Agent, s *apiServer) finding {
	t.Helper()
	s.put(podPath("shop", "a"), testPod("a"))
	s.put(configPath, testConfig())
	start(t, a)
	eventually(t, "the pod is found", func() bool { return a.isSynced() && len(found(t, a)) == 1 })
	all, err := a.unprogrammed(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func planOf(t *testing.T, a *Agent, f finding) plan {
	t.Helper()
	p, err := a.plan(t.Context(), f.pod)
	if err != nil {
		t.Fatal(err)
	}
	return p
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
		s := newAPIServer(t)
		dir := runtimeDir(t, tt.paths...)
		a := newTestAgent(t, s, func(c *Config) { c.Repair, c.NetnsDir = InPlace, dir })
		start(t, a)
		s.put(podPath("shop", "a"), testPod("a"))
		s.put(configPath, testConfig())
		eventually(t, "the owner is told", func() bool {
			posts := s.written("POST", "/api/v1/namespaces/shop/events")
			return len(posts) > 0 && strings.Contains(posts[0].body["message"].(string), tt.words)
		})
		wantMetrics(t, a, "detour_pods_unprogrammed 1")
		if keys, _ := a.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
			t.Errorf("%s: record %v", tt.name, keys)
		}
	}
	if _, _, err := openNamespaceOf(runtimeDir(t), nil); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("no address: %v", err)
	}
}

// The same namespace may be mounted twice, and a part of the addresses is not enough.
func TestTheNamespaceIsFoundByAllAddresses(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	dir := runtimeDir(t, w.Pod.Path())
	if err := os.Symlink(w.Pod.Path(), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	ns, where, err := openNamespaceOf(dir, []netip.Addr{nettest.PodIPv6})
	if err != nil || where.link != nettest.PodLink {
		t.Fatalf("%v %v", where, err)
	}
	ns.Close()
	if ns, _, err := openNamespaceOf(dir, []netip.Addr{nettest.PodIPv4, netip.MustParseAddr("10.9.9.9")}); err == nil {
		ns.Close()
		t.Error("found by a part of the addresses")
	}
	if _, _, err := openNamespaceOf("/nonexistent", []netip.Addr{nettest.PodIPv4}); err == nil {
		t.Error("no error for a folder that is not there")
	}
}

func TestAnAddThatCameFirstIsLeftAlone(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := newAPIServer(t)
	a := lookOnce(newTestAgent(t, s, func(c *Config) { c.NetnsDir = runtimeDir(t, w.Pod.Path()) }))
	f := findingOf(t, a, s)
	held, err := netns.Open(w.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.Lock(t.Context(), a.conf.StateDir); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- a.program(t.Context(), f) }()
	time.Sleep(50 * time.Millisecond)
	save(t, a, attachment.Record{Key: attachment.Key{Network: "pods", ContainerID: "1"}, Pod: "shop/a", PodUID: "uid-a", Outcome: attachment.Programmed})
	held.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantNoRules(t, w)
	if keys, _ := a.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("record %v", keys)
	}
}

// The pod whose ADD let it start unmeshed has one record in the end, which is its attachment's.
func TestTheRepairOfAPodThatStartedUnmeshedTakesItsRecord(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := newAPIServer(t)
	a := lookOnce(newTestAgent(t, s, func(c *Config) { c.NetnsDir = runtimeDir(t, w.Pod.Path()) }))
	f := findingOf(t, a, s)
	allowed := attachment.Record{
		Key: attachment.Key{Network: "pods", ContainerID: "1", IfName: "eth0"}, Netns: "/run/netns/by-runtime", Pod: "shop/a", PodUID: "uid-a",
		Outcome: attachment.Allowed, Reason: "no API server", Addresses: []netip.Addr{nettest.PodIPv4}, Time: time.Unix(1700000000, 0).UTC(),
		// What the failed ADD could not take back goes as well.
		Stale: []attachment.Record{{Backend: nftables.Name, Families: rules.Families, Setup: rules.Setup{Loopback: []netip.Prefix{netip.MustParsePrefix("::6/128")}}}},
	}
	save(t, a, allowed)
	onLo := func(verb string) (string, error) {
		var out []byte
		err := w.Pod.Do(func() (err error) {
			out, err = exec.Command("ip", "-6", "addr", verb, "::6/128", "dev", "lo").CombinedOutput()
			return err
		})
		return string(out), err
	}
	if out, err := onLo("add"); err != nil {
		t.Fatal(out)
	}
	if err := a.program(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	r, err := a.store.Load(allowed.Key)
	if err != nil || r.Outcome != attachment.Programmed || r.Reason != "" || r.Netns != allowed.Netns || r.NamespaceID == "" || !r.Time.Equal(allowed.Time) || len(r.Addresses) != 1 || len(r.Families) != 2 {
		t.Errorf("record %+v, %v", r, err)
	}
	if rulesIn(t, w) == nil {
		t.Error("nothing is programmed")
	}
	if _, err := onLo("del"); err == nil || r.Stale != nil {
		t.Errorf("what the failed ADD left is still there; the record has %+v", r.Stale)
	}
	if keys, _ := a.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("there is another record: %v", keys)
	}
}

func TestADifferenceIsAnErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := newAPIServer(t)
	a := lookOnce(newTestAgent(t, s, func(c *Config) { c.NetnsDir = runtimeDir(t, w.Pod.Path()) }))
	f := findingOf(t, a, s)
	ns, err := netns.Open(w.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lock, err := ns.Lock(t.Context(), a.conf.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		record := a.record(f.pod, place{path: w.Pod.Path(), link: "eth0"}, attachment.Record{})
		return a.carryOut(t.Context(), lock, planOf(t, a, f), record, func(ctx context.Context, r attachment.Record) error {
			if err := compare(ctx, r); err != nil {
				t.Errorf("nothing is different: %v", err)
			}
			if out, err := exec.Command(r.Backend, "-t", "nat", "-F", "PROXY_OUTPUT").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			return compare(ctx, r)
		})
	})
	if err == nil || !strings.Contains(err.Error(), "the kernel differs from what was programmed") || !strings.Contains(err.Error(), "PROXY_OUTPUT is missing") {
		t.Errorf("error %v", err)
	}
	wantNoRules(t, w)
}

// Killed at any moment, an agent leaves a pod that the next sweep programs: the record comes last, and programming again
// changes nothing.
func TestProgrammingAgainEndsTheSame(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := newAPIServer(t)
	a := lookOnce(newTestAgent(t, s, func(c *Config) { c.NetnsDir = runtimeDir(t, w.Pod.Path()) }))
	f := findingOf(t, a, s)
	var dumps []string
	for range 2 {
		if err := a.program(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		dumps = append(dumps, strings.Join(rulesIn(t, w), "\n"))
		if err := a.store.Delete(attachment.RepairKey("uid-a", nettest.PodLink)); err != nil {
			t.Fatal(err)
		}
	}
	if dumps[0] != dumps[1] || !strings.Contains(dumps[0], "-A PROXY_OUTPUT") {
		t.Errorf("first\n%s\nthen\n%s", dumps[0], dumps[1])
	}
}

// A transaction that the kernel does not take.
func TestWhatCanNotBeProgrammedLeavesNothing(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	s := newAPIServer(t)
	a := lookOnce(newTestAgent(t, s, func(c *Config) { c.NetnsDir = runtimeDir(t, w.Pod.Path()) }))
	f := findingOf(t, a, s)
	p := planOf(t, a, f)
	// iptables refuses a comment or a chain name like this, so the transaction fails.
	for i := range p.rules.Rules {
		p.rules.Rules[i].Chain.Name = strings.Repeat("X", 40)
	}
	ns, err := netns.Open(w.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	lock, err := ns.Lock(t.Context(), a.conf.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	record := a.record(f.pod, place{path: w.Pod.Path(), link: "eth0"}, attachment.Record{})
	if err := ns.Do(func() error { return a.carryOut(t.Context(), lock, p, record, compare) }); err == nil {
		t.Fatal("no error")
	} else {
		t.Log(err)
	}
	wantNoRules(t, w)
	if keys, _ := a.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("record %v", keys)
	}
}

func wantNoRules(t *testing.T, w *nettest.World) {
	t.Helper()
	if rules := rulesIn(t, w); rules != nil {
		t.Errorf("rules are there:\n%s", strings.Join(rules, "\n"))
	}
}

// rulesIn lists the rules that the pod's namespace has.
func rulesIn(t *testing.T, w *nettest.World) []string {
	t.Helper()
	nettest.RequireProgram(t, "iptables-save")
	var rules []string
	err := w.Pod.Do(func() error {
		out, err := exec.Command("iptables-save").Output()
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "-A ") {
				rules = append(rules, strings.TrimSpace(line))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}
