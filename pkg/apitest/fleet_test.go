//go:build kubeapi

package apitest

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// fleet is the agents of many nodes in this process, with deploy/'s rights and the component ready-node. Each has connections, a
// token and a state folder of its own.
type fleet struct {
	*testing.T
	namespace string // the agents' and the mesh's
	dir       string
	nodes     []*member
	pods      [][]placed // by node, the oldest first
	replacing sync.Mutex
	*workload
}

// member is a node of a fleet.
type member struct {
	name string
	conf agent.Config
	*meter

	agent *agent.Agent
	stop  func()
}

// members counts those of this process: they have different addresses.
var members atomic.Int64

// newFleet makes nodes with pods on each. It starts no agent.
func newFleet(t *testing.T, nodes, podsEach int) *fleet {
	t.Helper()
	nettest.RequireNetns(t) // root, whom alone the socket serves
	serveMeshConfigs(t)
	dir, err := os.MkdirTemp("", "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fleet{T: t, namespace: install(t, "overlays/osm", "components/ready-node"), dir: dir, workload: newWorkload(t)}
	server, err := url.Parse(kubernetes.server)
	if err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		f.nodes = append(f.nodes, f.newMember(i, newMeter(t, int(members.Add(1)), server.Host)))
	}
	f.setMeshConfig(6379)
	f.pods = make([][]placed, nodes)
	f.each(nodes, func(i int) error { return f.fill(i, podsEach) })
	if err := kubernetes.waitUntilAllowed(f.token(0), meshConfigsOf(f.namespace)+"/osm-mesh-config", "/api/v1/nodes/"+f.nodes[0].name); err != nil {
		t.Fatal(err)
	}
	return f
}

// fill makes pods that have been running on the node for long.
func (f *fleet) fill(node, pods int) error {
	for range pods {
		p, err := f.place(node, f.nodes[node].name)
		if err == nil {
			err = f.record(p)
		}
		if err != nil {
			return err
		}
		f.pods[node] = append(f.pods[node], p)
	}
	return nil
}

func (f *fleet) newMember(i int, m *meter) *member {
	f.Helper()
	name := fmt.Sprintf("%s-node-%d", f.namespace, i)
	dir := filepath.Join(f.dir, fmt.Sprint(i))
	node := mustParse(f.T, "{apiVersion: v1, kind: Node, metadata: {name: "+name+"}}")
	mustApply(f.T, node)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	dialect, _ := mesh.Find("osm")
	dialect.Config.Namespace = f.namespace
	conf := agent.Config{
		Node: name, Options: decision.Options{Dialect: dialect}, StateDir: dir, MetricsAddr: "127.0.0.1:0", MarkNode: true,
		Kubeconfig: filepath.Join(dir, "kubeconfig"),
		Log:        slog.New(slog.NewTextHandler(f.Output(), &slog.HandlerOptions{Level: slog.LevelError})),
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte(nodeToken(f.T, f.namespace, name)), 0o600); err != nil {
		f.Fatal(err)
	}
	kubeconfig := kubeconfigOf("https://"+m.address, f.tokenOf(dir))
	if err := os.WriteFile(conf.Kubeconfig, []byte(kubeconfig), 0o600); err != nil {
		f.Fatal(err)
	}
	return &member{name: name, conf: conf, meter: m, stop: func() {}}
}

func (f *fleet) token(i int) string { return f.tokenOf(f.nodes[i].conf.StateDir) }

func (f *fleet) tokenOf(dir string) string {
	f.Helper()
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		f.Fatal(err)
	}
	return string(token)
}

func (f *fleet) setMeshConfig(port int) {
	f.Helper()
	mustApply(f.T, mustParse(f.T, fmt.Sprintf(`
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {namespace: %s, name: osm-mesh-config}
spec: {traffic: {outboundPortExclusionList: [%d]}}
`, f.namespace, port)))
}

// each calls do for 0 to n-1, many at once.
func (f *fleet) each(n int, do func(i int) error) {
	f.Helper()
	var failed atomic.Bool
	numbers := make(chan int)
	var working sync.WaitGroup
	for range writers {
		working.Go(func() {
			for i := range numbers {
				if err := do(i); err != nil {
					failed.Store(true)
					f.Errorf("%d of %d: %v", i, n, err)
				}
			}
		})
	}
	for i := range n {
		numbers <- i
	}
	close(numbers)
	working.Wait()
	if failed.Load() {
		f.FailNow()
	}
}

// run starts the node's agent, until stop or the test's end.
func (f *fleet) run(m *member) {
	a, err := agent.New(m.conf)
	if err != nil {
		f.Error(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := a.Run(ctx); err != nil {
			f.Errorf("Run: %v", err)
		}
	})
	m.agent, m.stop = a, sync.OnceFunc(func() {
		cancel()
		running.Wait()
		m.cut()
	})
	f.Cleanup(m.stop)
}

// runAll starts all agents at once and returns how long each took until it was ready.
func (f *fleet) runAll() []time.Duration {
	f.Helper()
	began := time.Now()
	for _, m := range f.nodes {
		f.run(m)
	}
	return f.await(began, "it is ready", func(m *member) bool { return m.agent != nil && len(m.agent.Missing(f.Context())) == 0 })
}

// await returns how long after began each node was as it should be.
func (f *fleet) await(began time.Time, what string, is func(*member) bool) []time.Duration {
	f.Helper()
	took := make([]time.Duration, len(f.nodes))
	for left := len(f.nodes); left > 0; time.Sleep(pollTime) {
		for i, m := range f.nodes {
			if took[i] == 0 && is(m) {
				took[i] = time.Since(began)
				left--
			}
		}
		if time.Since(began) > 3*time.Minute {
			f.Fatalf("%d of %d nodes are not so: %s", left, len(f.nodes), what)
		}
	}
	slices.Sort(took)
	return took
}

// lookup asks the node's agent as the plugin does.
func (f *fleet) lookup(p placed) (agentapi.Answer, error) {
	id := pod.ID{Namespace: f.workload.namespace, Name: p.name, UID: p.uid}
	return f.call(p.node, agentapi.Request{Lookup: &id})
}

func (f *fleet) call(node int, r agentapi.Request) (agentapi.Answer, error) {
	socket := filepath.Join(f.nodes[node].conf.StateDir, agent.DefaultSocket)
	answer, err := agentapi.Call(f.Context(), socket, r, 20*time.Second)
	if err == nil && answer.Error != "" {
		err = fmt.Errorf("%+v: %s", r, answer.Error)
	}
	return answer, err
}

// add does at the node what an ADD does, but for the rules.
func (f *fleet) add(p placed) error {
	if _, err := f.lookup(p); err != nil {
		return err
	}
	if err := f.record(p); err != nil {
		return err
	}
	id := pod.ID{Namespace: f.workload.namespace, Name: p.name, UID: p.uid}
	_, err := f.call(p.node, agentapi.Request{Report: &agentapi.Report{ID: id, Outcome: attachment.Programmed, Backend: "nftables"}})
	return err
}

// succeed takes note of a node's new pod and returns the oldest, which it forgets.
func (f *fleet) succeed(p placed) (oldest placed) {
	f.replacing.Lock()
	defer f.replacing.Unlock()
	oldest = f.pods[p.node][0]
	f.pods[p.node] = append(f.pods[p.node][1:], p)
	return oldest
}

// settle waits until no agent receives anything.
func (f *fleet) settle() {
	f.Helper()
	received := func() (n int64) {
		for _, m := range f.nodes {
			n += m.down.Load()
		}
		return n
	}
	for before := int64(-1); received() != before; time.Sleep(3 * time.Second) {
		before = received()
	}
}

// rollOut replaces one pod of each node, when its successor is ready. add does what the runtime does for a pod.
func (f *fleet) rollOut(add func(placed) error) {
	f.Helper()
	f.each(len(f.nodes), func(i int) error {
		p, err := f.start(i, f.nodes[i].name, add)
		if err == nil {
			err = f.end(f.succeed(p))
		}
		return err
	})
	f.settle()
}

// knows reports whether the node's agent has a MeshConfig with the port.
func (f *fleet) knows(m *member, port int) bool {
	i := slices.Index(f.nodes, m)
	answer, err := f.lookup(f.pods[i][0])
	return err == nil && bytes.Contains(answer.Config, []byte(strconv.Itoa(port)))
}

// record leaves what ADD leaves at the node.
func (f *fleet) record(p placed) error {
	store := attachment.NewStore(f.nodes[p.node].conf.StateDir)
	if err := store.Prepare("net"); err != nil {
		return err
	}
	return store.Save(attachment.Record{
		Key: attachment.Key{Network: "net", ContainerID: p.uid, IfName: "eth0"}, Netns: "/run/netns/" + p.uid,
		Pod: f.workload.namespace + "/" + p.name, PodUID: p.uid, Mesh: "osm", Outcome: attachment.Programmed, Backend: "nftables", Time: time.Now(),
	})
}

// asked returns the requests of each node's agent since then, without what differs from node to node.
func (f *fleet) asked(since time.Time) [][]string {
	f.Helper()
	number := map[string]int{}
	for i, m := range f.nodes {
		number[m.source.String()] = i
	}
	all := make([][]string, len(f.nodes))
	for _, a := range kubernetes.audit(f.T, since) {
		if i, ours := number[a.SourceIPs[0]]; ours {
			uri := strings.ReplaceAll(varying.ReplaceAllString(a.RequestURI, ""), f.nodes[i].name, "NODE")
			uri = strings.ReplaceAll(strings.ReplaceAll(uri, f.namespace, "MESH"), f.workload.namespace, "PODS")
			all[i] = append(all[i], a.Verb+" "+strings.TrimSuffix(uri, "?"))
		}
	}
	return all
}

// varying are parameters of a list or watch that differ from one to the next, or say nothing.
var varying = regexp.MustCompile(`(allowWatchBookmarks|resourceVersion|timeoutSeconds|timeout|resourceVersionMatch)=[^&]*&?`)

// tally counts the nodes' requests by what was asked.
func tally(all [][]string) map[string]int {
	count := map[string]int{}
	for _, a := range slices.Concat(all...) {
		count[a]++
	}
	return count
}

// show lists the counts, the greatest first.
func show(count map[string]int) string {
	keys := slices.SortedFunc(maps.Keys(count), func(a, b string) int { return count[b] - count[a] })
	var s strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&s, "\n%6d %s", count[k], k)
	}
	return s.String()
}
