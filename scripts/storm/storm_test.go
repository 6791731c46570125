//go:build storm

package storm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
)

// A node starts many pods at once. None fails, and none waits for another: the lock of one pod's network namespace, and the host's of
// iptables, are held all the while.
func TestPodsAtOnce(t *testing.T) {
	pods := number(t, "PODS", 250)
	programs(t) // built with the whole PATH
	t.Run("nothing", func(t *testing.T) {
		n := newNode(t, 0)
		n.storm(n.chain("storm", map[string]any{"type": "floor"}), pods)
	})
	for _, backend := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(backend, func(t *testing.T) {
			usePATH(t, backend)
			holdXtablesLock(t)
			n := newNode(t, pods+1)
			n.startAgent()
			name, _, _ := strings.Cut(backend, "-")
			list := n.chain("storm", n.conf(name))
			held, release := n.lockedPod()
			waiting := make(chan error, 1)
			go func() { waiting <- n.add(list, pods, held) }()
			all := n.storm(list, pods)
			select {
			case err := <-waiting:
				t.Errorf("the pod whose network namespace is locked did not wait: %v", err)
			default:
			}
			release()
			if err := <-waiting; err != nil {
				t.Error(err)
			}
			n.wantProgrammed(backend, pods+1)
			n.end(list, append(all, held))
		})
	}
}

// Without an agent, all ask an API server at once that takes three seconds for each answer.
func TestPodsAtOnceWithASlowAPIServer(t *testing.T) {
	const pods = 100
	n := newNode(t, pods)
	var l net.Listener
	if err := n.ns.Do(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(3 * time.Second)
		n.api.ServeHTTP(w, r)
	})}}
	server.Start()
	defer server.Close()
	n.api.URL = server.URL
	list := n.chain("storm", n.conf("nftables"))
	all := n.storm(list, pods)
	n.wantProgrammed("nftables", pods)
	n.end(list, all)
}

// usePATH leaves one variant of iptables in PATH.
func usePATH(t *testing.T, variant string) {
	t.Helper()
	if variant == "nftables" {
		return
	}
	dir := t.TempDir()
	for _, ip := range []string{"ip", "ip6"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			program := ip + strings.TrimPrefix(variant, "ip") + suffix
			nettest.RequireProgram(t, program)
			path, _ := exec.LookPath(program) // it is there
			for _, name := range []string{program, ip + "tables" + suffix} {
				if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Setenv("PATH", dir)
}

// holdXtablesLock holds the lock of iptables until the test's end. It is a file of its own, so that only what this test starts
// could wait for it.
func holdXtablesLock(t *testing.T) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xtables.lock")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	t.Setenv("XTABLES_LOCKFILE", path)
}

// lockedPod is a pod that another detour seems to program.
func (n *node) lockedPod() (ns *nettest.Namespace, release func()) {
	n.t.Helper()
	ns = nettest.StartNamespace(n.t, "locked")
	pod, err := netns.Open(ns.Path())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { pod.Close() })
	if _, err := pod.Lock(n.t.Context(), n.dir+"/state"); err != nil {
		n.t.Fatal(err)
	}
	return ns, func() { pod.Close() }
}

// storm starts pods at once and prints how long their ADDs take.
func (n *node) storm(list *libcni.NetworkConfigList, pods int) []*nettest.Namespace {
	n.t.Helper()
	all := make([]*nettest.Namespace, pods)
	for i := range all {
		all[i] = nettest.StartNamespace(n.t, "pod")
	}
	took, errs := make([]time.Duration, pods), make(chan error, pods)
	began := time.Now()
	for i, ns := range all {
		go func() {
			began := time.Now()
			err := n.add(list, i, ns)
			took[i] = time.Since(began)
			errs <- err
		}()
	}
	failed := 0
	for range all {
		if err := <-errs; err != nil {
			failed++
			n.t.Error(err)
		}
	}
	whole := time.Since(began)
	slices.Sort(took)
	fmt.Printf("%-42s %d pods at once, %d failed: ADD median %v, 99th percentile %v, slowest %v, all %v\n", n.t.Name(), pods, failed,
		ms(took[pods/2]), ms(took[pods*99/100]), ms(took[pods-1]), ms(whole))
	return all
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// added is what detour's log says of an ADD.
type added struct {
	Pod, Outcome, Backend, Fallback string
	MS                              map[string]float64 `json:"ms"`
}

// wantProgrammed wants that the log says of so many pods, each once, that they were programmed by the backend and, if there is an agent,
// that nobody else was asked. It prints the medians and the slowest of the stages.
func (n *node) wantProgrammed(backend string, pods int) {
	n.t.Helper()
	text, err := os.ReadFile(n.dir + "/log")
	if err != nil {
		n.t.Fatal(err)
	}
	seen, stages := map[string]bool{}, map[string][]float64{}
	for line := range strings.Lines(string(text)) {
		var a added
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			n.t.Fatalf("log line %q: %v", line, err)
		}
		if a.Outcome != string(attachment.Programmed) || a.Backend != backend || a.Fallback != "" {
			n.t.Errorf("log line %s", line)
		}
		seen[a.Pod] = true
		for stage, ms := range a.MS {
			stages[stage] = append(stages[stage], ms)
		}
	}
	if len(seen) != pods {
		n.t.Errorf("%d pods were programmed, want %d", len(seen), pods)
	}
	var print strings.Builder
	for _, stage := range append(slices.Clone(agentapi.Stages), "total") {
		all := stages[stage]
		slices.Sort(all)
		if len(all) > 1 {
			fmt.Fprintf(&print, " %s %.1f to %.1f,", stage, all[len(all)/2], all[len(all)-2]) // the slowest is the locked one
		}
	}
	fmt.Printf("%-42s detour's stages in ms, median to slowest:%s\n", n.t.Name(), strings.TrimSuffix(print.String(), ","))
}

// end ends all pods at once. Nothing may be left in the state folder.
func (n *node) end(list *libcni.NetworkConfigList, all []*nettest.Namespace) {
	n.t.Helper()
	errs := make(chan error, len(all))
	for i, ns := range all {
		go func() { errs <- n.del(list, i, ns) }()
	}
	var err error
	for range all {
		err = errors.Join(err, <-errs)
	}
	if left := n.files(); err != nil || left != nil {
		n.t.Errorf("after all DELs there is still %q, %v", left, err)
	}
}
