//go:build kubeapi && scale

package apitest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// number reads a number from the environment.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n <= 0 {
		t.Fatalf("%s=%q is not a number above 0", name, text)
	}
	return n
}

// TestScale prints the table of scripts/scale/README.md. It needs the API server for itself.
func TestScale(t *testing.T) {
	nodes, pods := number(t, "AGENTS", 100), number(t, "PODS", 30)
	rest := time.Duration(number(t, "REST", 30)) * time.Second
	f := newFleet(t, nodes, pods)
	program := buildAgent(t)
	fmt.Printf("%d agents with %d pods of %d bytes each\n\n", nodes, pods, f.podSize())
	fmt.Println("| what | requests | connections | to the node | from the node | API server's CPU | peak/s | refused | s |")
	fmt.Println("| - | -: | -: | -: | -: | -: | -: | -: | -: |")
	f.measure("without agents: one pod of each node replaced", 1, func() { f.rollOut(f.record) })
	f.measureStart()
	f.measure("one pod of each node replaced", 1, func() { f.rollOut(f.add) })
	for i := range 3 {
		f.measureConfig(7000 + i)
	}
	f.measureRestarts(f.nodes[:max(1, nodes/10)])
	f.measure("the API server restarts", 1, func() {
		kubernetes.restart(t)
		f.setMeshConfig(8000)
		f.await(time.Now(), "it has the MeshConfig", func(m *member) bool { return f.knows(m, 8000) })
		f.settle()
	})
	f.measureRest(rest, program)
	f.measureUnserved()
	f.comparePeers()
}

func (f *fleet) measureStart() {
	f.Helper()
	before := memory()
	var took []time.Duration
	f.measure("all agents start at once", 1, func() {
		took = f.runAll()
		f.settle()
	})
	f.say("ready after", took)
	fmt.Printf("memory: %.1f MB an agent in one process\n", float64(memory()-before)/float64(len(f.nodes))/1e6)
}

func (f *fleet) measureConfig(port int) {
	f.Helper()
	var took []time.Duration
	f.measure("a MeshConfig changes", 1, func() {
		began := time.Now()
		f.setMeshConfig(port)
		took = f.await(began, "it has the MeshConfig", func(m *member) bool { return f.knows(m, port) })
	})
	f.say("known after", took)
}

// measureRestarts restarts some agents one by one, as a rolling update does.
func (f *fleet) measureRestarts(some []*member) {
	f.Helper()
	f.measure("an agent restarts", float64(len(some))/float64(len(f.nodes)), func() {
		for _, m := range some {
			m.stop()
			f.run(m)
			f.await(time.Now(), "it is ready", func(m *member) bool { return len(m.agent.Missing(f.Context())) == 0 })
		}
		f.settle()
	})
}

// measureRest measures an hour of rest by a part of it. One of the agents is the program.
func (f *fleet) measureRest(rest time.Duration, program string) {
	f.Helper()
	f.nodes[0].stop()
	pid := f.startProgram(f.nodes[0], program)
	f.await(time.Now(), "it answers", func(m *member) bool { return f.knows(m, 8000) })
	f.settle()
	f.measure(fmt.Sprintf("an hour of rest, of which %s", rest), rest.Hours(), func() { time.Sleep(rest) })
	all, own := resident(f.T, pid)
	fmt.Printf("memory of an agent's process: %.1f MB, of which %.1f MB in no file\n", float64(all)/1e6, float64(own)/1e6)
}

// measureUnserved measures an hour without the mesh by a part of it.
func (f *fleet) measureUnserved() {
	f.Helper()
	if err := kubernetes.serve(); err != nil {
		f.Fatal(err)
	}
	const first, part = time.Minute, 2 * time.Minute
	time.Sleep(first)
	f.measure(fmt.Sprintf("an hour in which the mesh's kind is not served, of which %s", part), part.Hours(), func() { time.Sleep(part) })
	if err := kubernetes.serve("v1alpha1", "v1alpha2"); err != nil {
		f.Fatal(err)
	}
}

// taken is what the API server and the meters have counted so far.
type taken struct {
	at                    time.Time
	up, down, connections int64
	cpu, refused          float64
}

func (f *fleet) take() taken {
	f.Helper()
	n := taken{at: time.Now()}
	for _, m := range f.nodes {
		n.up += m.up.Load()
		n.down += m.down.Load()
		n.connections += m.connections.Load()
	}
	metrics, err := kubernetes.admin.expect(http.MethodGet, "/metrics", nil, http.StatusOK)
	if err != nil {
		f.Fatal(err)
	}
	n.cpu = sum(metrics, "process_cpu_seconds_total")
	n.refused = sum(metrics, "apiserver_flowcontrol_rejected_requests_total")
	return n
}

// sum adds up the series of a metric.
func sum(metrics []byte, name string) (total float64) {
	for line := range bytes.Lines(metrics) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, name+" ") || strings.HasPrefix(text, name+"{") {
			value, _ := strconv.ParseFloat(text[strings.LastIndexByte(text, ' ')+1:], 64)
			total += value
		}
	}
	return total
}

// measure prints what happens in do, divided by the number of nodes and by share.
func (f *fleet) measure(what string, share float64, do func()) {
	f.Helper()
	b := f.take()
	do()
	a := f.take()
	count := tally(f.asked(b.at))
	total := 0
	for _, n := range count {
		total += n
	}
	per := share * float64(len(f.nodes))
	restarted := a.cpu < b.cpu // its counters began anew
	if restarted {
		b.cpu, b.refused = 0, 0
	}
	fmt.Printf("| %s | %.1f | %.1f | %.1f kB | %.1f kB | %.1f ms | %d | %.0f | %.0f |\n", what, float64(total)/per,
		float64(a.connections-b.connections)/per, float64(a.down-b.down)/per/1e3, float64(a.up-b.up)/per/1e3,
		(a.cpu-b.cpu)/per*1e3, f.peak(b.at), a.refused-b.refused, a.at.Sub(b.at).Seconds())
	f.Logf("%s:%s", what, show(count))
}

// peak is the greatest number of the fleet's requests within a second since then.
func (f *fleet) peak(since time.Time) (most int) {
	ours := map[string]bool{}
	for _, m := range f.nodes {
		ours[m.source.String()] = true
	}
	perSecond := map[int64]int{}
	for _, a := range kubernetes.audit(f.T, since) {
		if ours[a.SourceIPs[0]] {
			perSecond[a.RequestReceivedTimestamp.Unix()]++
		}
	}
	for _, n := range perSecond {
		most = max(most, n)
	}
	return most
}

func (f *fleet) say(what string, took []time.Duration) {
	fmt.Printf("%s: median %.2f s, last %.2f s\n", what, took[len(took)/2].Seconds(), took[len(took)-1].Seconds())
}

func (f *fleet) podSize() int {
	f.Helper()
	body, err := f.client.expect(http.MethodGet, f.path(f.pods[0][0], ""), nil, http.StatusOK)
	if err != nil {
		f.Fatal(err)
	}
	return len(body)
}

// memory is what this process has of the system's memory, in bytes.
func memory() int {
	runtime.GC()
	data, _ := os.ReadFile("/proc/self/statm")
	pages, _ := strconv.Atoi(strings.Fields(string(data))[1])
	return pages * os.Getpagesize()
}

// restart kills the API server and starts it again 5 seconds later.
func (c *cluster) restart(t *testing.T) {
	t.Helper()
	old := c.processes[len(c.processes)-1]
	old.stop()
	time.Sleep(5 * time.Second)
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // see startProcess: this thread stays until the process's end
		p, err := startProcess(c.dir, old.args[0], old.args[1:]...)
		if err == nil {
			c.processes[len(c.processes)-1] = p
		}
		started <- err
		select {}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := c.waitUntilReady(); err != nil {
		t.Fatal(err)
	}
}
