//go:build storm

package storm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// workers start and end pods side by side.
const workers = 4

// Pods start and end, one after the other, in new network namespaces and in a few that are used again and again. Nothing is left: no
// file, namespace, mount, process or routing rule, and the agent holds as many descriptors and goroutines as before, and little more memory.
func TestPodsOneAfterTheOther(t *testing.T) {
	cycles := number(t, "CYCLES", 400)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil { // a process that outlives its plugin becomes this one's
		t.Fatal(err)
	}
	n := newNode(t, workers)
	n.startAgent()
	reused := make([]*nettest.Namespace, workers)
	for i := range reused {
		reused[i] = nettest.StartNamespace(t, "reused")
	}
	n.cycle(workers*len(backends)*2, reused) // what is made once is there
	before := n.footprint()
	began := time.Now()
	n.cycle(cycles, reused)
	took := time.Since(began)
	after := n.footprint()
	for deadline := time.Now().Add(nettest.Patience); len(after.more(before)) > 0 && time.Now().Before(deadline); after = n.footprint() {
		time.Sleep(time.Second) // connections end, and the kernel frees in the background
	}
	fmt.Printf("%d ADDs and DELs in %v\nbefore: %v\nafter:  %v\n", cycles, took.Round(time.Second), before, after)
	if more := after.more(before); len(more) > 0 {
		t.Errorf("there are more %v than before", more)
	}
	if most := before.resident + 16e6; after.resident > most {
		t.Errorf("the agent's memory is %.1f MB, and was %.1f MB", after.resident/1e6, before.resident/1e6)
	}
	for i, ns := range reused {
		if got := rulesIn(t, ns); got != "" {
			t.Errorf("namespace %d has %s", i, got)
		}
	}
}

var backends = []string{"nftables", "iptables"}

// cycle runs ADD and DEL so many times: every second pod in a new network namespace, with each backend.
func (n *node) cycle(cycles int, reused []*nettest.Namespace) {
	n.t.Helper()
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < cycles && !n.t.Failed(); i += workers {
				backend, ns := backends[i/workers%len(backends)], reused[w]
				if i/workers%4 < 2 {
					var err error
					if ns, err = nettest.NewNamespace("new"); err != nil {
						n.t.Error(err)
						return
					}
				}
				for _, verb := range []string{"ADD", "DEL"} {
					if err := n.plugin(verb, backend, w, fmt.Sprint("c", i), ns); err != nil {
						n.t.Error(err)
					}
				}
				if ns != reused[w] {
					if err := ns.Close(); err != nil {
						n.t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
}

// plugin runs detour alone, as a runtime would behind another plugin.
func (n *node) plugin(verb, backend string, pod int, container string, ns *nettest.Namespace) error {
	conf := n.conf(backend)
	conf["cniVersion"], conf["name"] = "1.0.0", "storm"
	conf["prevResult"] = map[string]any{"cniVersion": "1.0.0", "ips": []any{map[string]any{"address": "10.99.0.2/16"}, map[string]any{"address": "fd99::2/64"}}}
	delete(conf, "logFile")
	stdin, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(programs(n.t), "detour"))
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+container, "CNI_NETNS="+ns.Path(), "CNI_IFNAME=eth0", "CNI_PATH=/",
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=%[1]s;K8S_POD_UID=uid-%[1]s", podName(pod)))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", verb, err, out)
	}
	return nil
}

// footprint is what there is of the pods.
type footprint struct {
	held     map[string]int
	resident float64 // bytes, of the agent
	slab     string  // the kernel's, of the whole machine
}

func (f footprint) String() string {
	return fmt.Sprintf("%v, agent %.1f MB, kernel %s", f.held, f.resident/1e6, f.slab)
}

// idle is how many descriptors and goroutines the agent has more or less as its own connections come and go.
const idle = 8

// more names what there is more of than before.
func (f footprint) more(before footprint) []string {
	var more []string
	for name, n := range f.held {
		if strings.HasPrefix(name, "agent's") {
			n -= idle
		}
		if n > before.held[name] {
			more = append(more, name)
		}
	}
	return more
}

func (n *node) footprint() footprint {
	n.t.Helper()
	namespaces, err := nettest.Leftovers()
	if err != nil {
		n.t.Fatal(err)
	}
	return footprint{
		held: map[string]int{
			"files": len(n.files()), "namespaces": len(namespaces), "children": len(children(n.t)),
			"mounts":              count(n.t, "/proc/self/mountinfo", "/nettest-"+strconv.Itoa(os.Getpid())+"-"),
			"routing rules":       strings.Count(output(n.t, n.ns, "ip rule; ip -6 rule"), "\n"),
			"agent's descriptors": int(n.metric("process_open_fds")), "agent's goroutines": int(n.metric("go_goroutines")),
		},
		resident: n.metric("process_resident_memory_bytes"),
		slab:     slab(n.t),
	}
}

// children are this process's, and those of plugins that ended before them.
func children(t *testing.T) []string {
	t.Helper()
	threads, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, path := range threads {
		text, _ := os.ReadFile(path) // the thread may have ended
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

func count(t *testing.T, path, part string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), part)
}

// slab is the kernel's memory for objects that nobody can reclaim, and how many network namespaces and connections it has. Those of
// nf_tables have no slab of their own. Other processes of the machine have a part in it, so it is printed, not compared.
func slab(t *testing.T) string {
	t.Helper()
	var found []string
	for _, path := range []string{"/proc/meminfo", "/proc/slabinfo"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			switch words := strings.Fields(line); words[0] {
			case "SUnreclaim:", "Percpu:", "net_namespace", "nf_conntrack":
				found = append(found, words[0]+" "+words[1])
			}
		}
	}
	return strings.Join(found, ", ")
}

// rulesIn are detour's in a namespace.
func rulesIn(t *testing.T, ns *nettest.Namespace) string {
	t.Helper()
	return output(t, ns, "nft list tables | grep -w detour; iptables-save | grep PROXY; ip6tables-save | grep PROXY; ip rule | grep fwmark; true")
}

func output(t *testing.T, ns *nettest.Namespace, script string) string {
	t.Helper()
	var out []byte
	if err := ns.Do(func() (err error) { out, err = exec.Command("sh", "-c", script).Output(); return err }); err != nil {
		t.Fatal(err)
	}
	return string(out)
}
