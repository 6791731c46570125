package agenttest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// Eventually waits until ok.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * nettest.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// Pod is a pod of node n1 with a sidecar, running for an hour.
func Pod(name string) Fields {
	return Fields{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": Fields{
			"namespace": "shop", "name": name, "uid": "uid-" + name,
			"ownerReferences": []Fields{{"controller": true, "kind": "ReplicaSet", "name": "r"}},
			"managedFields":   []Fields{{"manager": "kubelet", "fieldsV1": Fields{"f:status": Fields{}}}},
		},
		"spec": Fields{"nodeName": "n1", "containers": []Fields{{"name": "app"}, {"name": "envoy"}}},
		"status": Fields{
			"phase": "Running", "podIPs": []Fields{{"ip": nettest.PodIPv4.String()}, {"ip": nettest.PodIPv6.String()}},
			"containerStatuses": []Fields{{"name": "app", "state": Fields{"running": Fields{"startedAt": Ago(time.Hour)}}}},
		},
	}
}

// Ago is a time as the API server has it.
func Ago(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }

// Config is osm's configuration.
func Config() Fields {
	return Fields{
		"kind": "MeshConfig", "apiVersion": "config.openservicemesh.io/v1alpha2",
		"metadata": Fields{"namespace": "osm-system", "name": "osm-mesh-config"},
		"spec":     Fields{"traffic": Fields{"outboundPortExclusionList": []int{6379}}},
	}
}

// Running are the statuses of a container that has been running since then.
func Running(since string) []Fields {
	return []Fields{{"name": "app", "state": Fields{"running": Fields{"startedAt": since}}}}
}

// host keeps the tests' own network namespace open, whichever namespaces threads enter later.
var host, _ = os.Open("/proc/thread-self/ns/net")

// RuntimeDir is a folder of network namespaces as a runtime keeps it, with these and with files that are none.
func RuntimeDir(t testing.TB, paths ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range append(paths, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), host.Fd()), "/proc/self/ns/mnt", "/nonexistent") {
		if err := os.Symlink(path, filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Rules lists the iptables rules of the pod's namespace.
func Rules(t testing.TB, w *nettest.World) []string {
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

// Start calls run in the background and returns what ends it: it cancels run's context and waits. run must end without an error.
// The test's end calls it too.
func Start(t testing.TB, run func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
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
