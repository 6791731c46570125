package repair

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// web is a meshed pod that runs.
var web = nodepod.Pod{
	ID: pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"}, Phase: "Running", Addresses: []netip.Addr{nettest.PodIPv4, nettest.PodIPv6},
	JSON: []byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"shop","name":"a","uid":"uid-a"},"spec":{"containers":[{"name":"app"},{"name":"envoy"}]}}`),
}

// node is a cluster that has this pod alone.
type node struct{ decision.Options }

func (node) Known() bool         { return true }
func (node) Pods() []nodepod.Pod { return []nodepod.Pod{web} }
func (n node) Decide(_ context.Context, p nodepod.Pod) (decision.Decision, error) {
	return n.Options.Decide(decision.Input{ID: p.ID, Pod: p.JSON, ConfigAbsent: "it is gone", Addresses: p.Addresses})
}

// nobody hears of nothing.
type nobody struct{}

func (nobody) Unprogrammed(pod.ID, string) {}
func (nobody) Repaired(pod.ID, string)     {}

// newRepairer returns a repairer of a node with the pod's network namespace.
func newRepairer(t *testing.T) (*nettest.World, *Repairer) {
	t.Helper()
	w := nettest.StartWorld(t)
	osm, _ := mesh.Find("osm")
	return w, New(Config{
		Mode: InPlace, Mesh: "osm", StateDir: t.TempDir(), NetnsDir: agenttest.RuntimeDir(t, w.Pod.Path()),
		Cluster: node{decision.Options{Dialect: osm}}, Owners: nobody{},
		Unprogrammed: prometheus.NewGauge(prometheus.GaugeOpts{}), Repairs: prometheus.NewCounterVec(prometheus.CounterOpts{}, []string{"mode", "result"}),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

// locked opens and locks the pod's namespace, as an ADD does.
func locked(t *testing.T, r *Repairer, w *nettest.World) (*netns.Pod, *os.File) {
	t.Helper()
	ns, err := netns.Open(w.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	lock, err := ns.Lock(t.Context(), r.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	return ns, lock
}

func wanted(t *testing.T, r *Repairer) decision.Decision {
	t.Helper()
	d, err := r.Cluster.Decide(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func save(t testing.TB, r *Repairer, record attachment.Record) {
	t.Helper()
	record.IfName, record.Mesh = "eth0", "osm"
	if err := r.store.Save(record); err != nil {
		t.Fatal(err)
	}
}

func wantNoRules(t *testing.T, w *nettest.World) {
	t.Helper()
	if rules := agenttest.Rules(t, w); rules != nil {
		t.Errorf("rules are there:\n%s", strings.Join(rules, "\n"))
	}
}
