package verify

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/podns"
)

// wantUnknown checks that nothing is found and that exactly these checks could not be made.
func (s *scene) wantUnknown(wants ...string) {
	s.t.Helper()
	p := s.verify()
	if p.Result != Unknown || len(p.Findings) > 0 {
		s.t.Errorf("%+v", p)
	}
	s.compare(p.Unknown, wants)
}

// change changes the pod's record.
func (s *scene) change(change func(*attachment.Record)) {
	s.t.Helper()
	store := attachment.NewStore(s.path("state"))
	var record attachment.Record
	if err := store.All(func(r attachment.Record, _ error) { record = r }); err != nil {
		s.t.Fatal(err)
	}
	if err := store.Delete(record.Key); err != nil {
		s.t.Fatal(err)
	}
	change(&record)
	if err := store.Save(record); err != nil {
		s.t.Fatal(err)
	}
}

// Without an API server or agent, the rules, listeners, ports and users are checked all the same.
func TestWithoutASourceTheRestIsChecked(t *testing.T) {
	t.Parallel()
	for why, c := range map[string]struct {
		happens func(*scene)
		want    string
	}{
		"no net conf":    {func(s *scene) { s.remove("net.d/10-pods.conflist") }, "configuration no file in "},
		"no folder":      {func(s *scene) { s.remove("net.d") }, "configuration no such file or directory"},
		"a bad net conf": {func(s *scene) { s.conf["mesh"] = "other"; s.writeManifests() }, `configuration mesh: "other" is none of`},
		"no agent": {func(s *scene) {
			delete(s.conf, "manifests")
			s.conf["agentSocket"] = s.path("socket")
			s.writeManifests()
		}, "configuration is detour-agent running on this node?"},
		"no such pod":     {func(s *scene) { s.remove("manifests/pod.json") }, "configuration no such pod"},
		"another pod":     {func(s *scene) { s.set(s.pod, "metadata/uid", "other") }, "configuration the pod of this name has UID other at the API server"},
		"a bad manifest":  {func(s *scene) { s.write("manifests/pod.json", "x") }, "configuration not a Kubernetes manifest"},
		"no pod's status": {func(s *scene) { s.set(s.pod, "status", map[string]any{}) }, `sidecar-ready whether container "envoy" is ready is not known`},
	} {
		t.Run(why, func(t *testing.T) {
			t.Parallel()
			s := newOSM(t, "nftables")
			c.happens(s)
			s.wantUnknown(c.want)
			s.run("app", "worker", "1500:1500")
			s.run("app", "metrics", "1000:1000", "tcp/:15902")
			s.inPod("nft", "flush chain inet detour PROXY_IN_REDIRECT")
			p := s.verify()
			s.compare(p.Findings, []string{"rule-missing rule 1 of PROXY_IN_REDIRECT", "proxy-user runs as UID 1500", "port-taken listens on port 15902"})
			s.compare(p.Unknown, []string{c.want})
		})
	}
}

func (s *scene) remove(name string) {
	s.t.Helper()
	if err := os.RemoveAll(s.path(name)); err != nil {
		s.t.Fatal(err)
	}
}

func TestAPodThatIsLeftAloneSaysWhy(t *testing.T) {
	t.Parallel()
	s := newScene(t, "osm", "envoy")
	both := s.pod["spec"].(map[string]any)["containers"]
	s.set(s.pod, "spec/containers", []any{map[string]any{"name": "app"}})
	s.add()
	if p := s.verify(); p.Result != Skipped || p.Reason != `it has no container "envoy"` || len(p.Findings)+len(p.Unknown) > 0 {
		t.Errorf("%+v", p)
	}
	s.set(s.pod, "spec/containers", both)
	s.want(`wanted detour left the pod alone when it started (it has no container "envoy"), but the mesh wants it today`)
	s.annotate("openservicemesh.io/outbound-port-exclusion-list", "x")
	s.want(`refused openservicemesh.io/outbound-port-exclusion-list: entry 1 "x"`)
	s.remove("net.d")
	if p := s.verify(); p.Result != Skipped || len(p.Unknown) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestAPodThatDetourWasNotCalledFor(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.remove("state")
	if err := os.Mkdir(s.path("pods/shop_web_"+uid), 0o700); err != nil {
		t.Fatal(err)
	}
	s.want("not-called the mesh wants the pod, but detour was not called for it")
	s.remove("net.d")
	s.wantUnknown("configuration no such file or directory")
	if err := os.Mkdir(s.path("net.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.annotate("openservicemesh.io/sidecar-injection", "disabled")
	if p := s.verify(); p.Result != Skipped || !strings.Contains(p.Reason, "sidecar-injection is") {
		t.Errorf("%+v", p)
	}
}

func TestAPodThatRunsUnmeshed(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.change(func(r *attachment.Record) { r.Outcome, r.Reason = attachment.Allowed, "no agent" })
	s.want("unmeshed the pod runs without redirection, as onError is allow and detour could not program it: no agent")
}

// An excluded namespace needs no lookup.
func TestANamespaceThatWasExcludedLater(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.conf["excludeNamespaces"] = []string{"shop"}
	s.writeManifests()
	s.remove("manifests")
	s.want("not-wanted the pod was programmed, but the mesh would leave it alone today: namespace shop is excluded")
}

// A node's pods do not wait one after the other for an agent that is away.
func TestWhoDoesNotAnswerIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	source := newSource(t.TempDir(), "")
	conf := netconf.Conf{Name: "pods", AgentSocket: t.TempDir() + "/nobody"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, first := source.lookup(ctx, conf, pod.ID{Namespace: "shop", Name: "web"})
	_, second := source.lookup(t.Context(), conf, pod.ID{Namespace: "shop", Name: "other"})
	if first == nil || !errors.Is(second, first) {
		t.Errorf("first %v, then %v", first, second)
	}
}

// Records of earlier versions don't have what was asked for.
func TestAnEarlierRecordDriftsWithoutNames(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			s := newOSM(t, backend)
			s.change(func(r *attachment.Record) { r.Asked = nil })
			s.wantFine()
			s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{7000})
			s.want("drifted other rules would be programmed today: ")
		})
	}
}

// The node agent's repair writes its record under a network of its own, without addresses.
func TestTheRecordOfARepair(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.change(func(r *attachment.Record) {
		r.Key, r.Addresses = attachment.RepairKey(uid, "eth0"), nil
	})
	s.wantFine()
	s.inPod("ip", "addr", "flush", "dev", "eth0")
	s.wantUnknown("drifted neither the pod's record nor its namespace has an address")
}

func TestManifestsReplaceTheSource(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.set(s.config, "spec/traffic/outboundPortExclusionList", []int{7000})
	for _, prepare := range []func(){
		func() {
			delete(s.conf, "manifests")
			s.conf["agentSocket"] = s.path("nobody")
			s.writeManifests()
		},
		func() { s.remove("net.d") }, // the mesh's defaults
	} {
		prepare()
		v := s.verifier()
		v.Manifests = s.path("manifests")
		report, err := v.Pods(t.Context(), []pod.ID{{Namespace: "shop", Name: "web"}}, "")
		if err != nil {
			t.Fatal(err)
		}
		s.compare(report.Pods[0].Findings, []string{"drifted MeshConfig spec.traffic.outboundPortExclusionList has 7000 today"})
	}
	v := s.verifier()
	v.Manifests = s.path("nowhere")
	if _, err := v.All(t.Context()); err == nil || !strings.Contains(err.Error(), "read manifests") {
		t.Errorf("got %v", err)
	}
}

func TestAllPodsOfTheNode(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	store := attachment.NewStore(s.path("state"))
	for _, gone := range []string{"a", "b"} { // two attachments of one pod
		r := attachment.Record{Key: attachment.Key{Network: "pods", ContainerID: gone, IfName: "eth0"}, Pod: "shop/gone", PodUID: "u", Netns: "/run/netns/gone", Outcome: attachment.Programmed}
		if err := store.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	byHand := attachment.Record{Key: attachment.Key{Network: "pods", ContainerID: "c", IfName: "eth0"}, Netns: "/run/netns/gone", Outcome: attachment.Skipped}
	if err := store.Save(byHand); err != nil { // a container of no pod
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path("state/attachments/pods/bad@eth0.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A pod with hostNetwork: this test is in the node's namespace.
	if err := os.Mkdir(s.path("pods/kube-system_proxy_1f7e3a5c"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.show(os.Getpid(), "/kubepods/pod1f7e3a5c/x")
	report, err := s.verifier().All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range report.Pods {
		got = append(got, p.Pod+" "+string(p.Result)+" "+p.Reason)
	}
	if want := "kube-system/proxy skipped it has the node's own network (hostNetwork), shop/gone wrong , shop/web fine "; strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if report.Result != Wrong || len(report.Node) != 1 || report.Node[0].Name != BadRecord || !strings.Contains(report.Node[0].Text, "bad@eth0.json") {
		t.Errorf("%+v", report)
	}
	s.compare(report.Pods[1].Findings, []string{"pod-gone there is no network namespace /run/netns/gone any more"})
	if _, err := s.verifier().Pods(t.Context(), []pod.ID{{Namespace: "shop", Name: "gone"}}, ""); !errors.Is(err, podns.ErrGone) {
		t.Errorf("got %v", err)
	}
}

// A process whose files can't be looked at may be the one that listens.
func TestProcessesThatCannotBeLookedAt(t *testing.T) {
	t.Parallel()
	s := newOSM(t, "nftables")
	s.run("app", "hidden", "1000:1000")
	pids, err := os.ReadDir(s.path("proc"))
	if err != nil {
		t.Fatal(err)
	}
	dir := s.path("proc/" + pids[0].Name() + "/fd")
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700), os.WriteFile(dir+"/0", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if p := s.verify(); len(p.Unknown) != 1 || p.Unknown[0].Name != OwnersUnknown {
		t.Errorf("%+v", p)
	}
}
