package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
)

// hostNamespace stays the one of the tests, whichever the main thread is in when it is opened.
var hostNamespace string

func TestMain(m *testing.M) {
	if dir := os.Getenv(childState); dir != "" {
		os.Exit(runChild(dir))
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		panic(err)
	}
	hostNamespace = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd())
	code := nettest.Main(m)
	file.Close()
	os.Exit(code)
}

// hasty is for tests. What bounds the wait for somebody who may only be slow, on a busy machine, is less so.
var hasty = timing{
	request: 2 * nettest.Patience,
	lookup:  5 * time.Second,
	ready:   time.Second,
	probe:   20 * time.Millisecond,
	sweep:   30 * time.Millisecond,
	settle:  time.Second,
	taint:   50 * time.Millisecond,
	check:   20 * time.Millisecond,
	evict:   time.Millisecond,
}

func osm(t testing.TB) mesh.Dialect {
	d, ok := mesh.Find("osm")
	if !ok {
		t.Fatal("no dialect osm")
	}
	return d
}

// newTestAgent makes an agent of the server that does not run yet.
func newTestAgent(t testing.TB, s *apiServer, change func(*Config)) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := Config{
		Node: "n1", Options: decision.Options{Dialect: osm(t)}, Kubeconfig: s.kubeconfig(t), StateDir: dir, MetricsAddr: "127.0.0.1:0",
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&conf)
	}
	a, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	a.timing, a.config.again, a.booted = hasty, 20*time.Millisecond, time.Time{}
	return a
}

// start runs the agent until the test ends or stop is called.
func start(t testing.TB, a *Agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * nettest.Patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * nettest.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// testPod is a pod of node n1 with a sidecar, running for an hour.
func testPod(name string) fields {
	return fields{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": fields{
			"namespace": "shop", "name": name, "uid": "uid-" + name,
			"ownerReferences": []fields{{"controller": true, "kind": "ReplicaSet", "name": "r"}},
			"managedFields":   []fields{{"manager": "kubelet", "fieldsV1": fields{"f:status": fields{}}}},
		},
		"spec": fields{"nodeName": "n1", "containers": []fields{{"name": "app"}, {"name": "envoy"}}},
		"status": fields{
			"phase": "Running", "podIPs": []fields{{"ip": nettest.PodIPv4.String()}, {"ip": nettest.PodIPv6.String()}},
			"containerStatuses": []fields{{"name": "app", "state": fields{"running": fields{"startedAt": ago(time.Hour)}}}},
		},
	}
}

func ago(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }

func testConfig() fields {
	return fields{
		"kind": "MeshConfig", "apiVersion": "config.openservicemesh.io/v1alpha2",
		"metadata": fields{"namespace": "osm-system", "name": "osm-mesh-config"},
		"spec":     fields{"traffic": fields{"outboundPortExclusionList": []int{6379}}},
	}
}

// isSynced waits until the agent knows the cluster.
func (a *Agent) isSynced() bool { return a.pods.isSynced() && a.config.get().known }
