//go:build kubeapi

package apitest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agent/events"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// function is something that the agent does. It returns "" once that works, else the error or the log.
type function func(*deployedAgent) string

// agentsRights are the agent's rights, and what fails without each of them.
var agentsRights = []struct {
	right
	fails     function
	oldServer bool // one that can't list as a stream
}{
	{right{"ClusterRole detour-agent", "get", "", "pods", ""}, looksUpLive, false},
	{right{"ClusterRole detour-agent", "list", "", "pods", ""}, waitsForSelectingPods, false},
	{right{"ClusterRole detour-agent", "list", "", "pods", ""}, followsPods, true},
	{right{"ClusterRole detour-agent", "watch", "", "pods", ""}, followsPods, false},
	{right{"ClusterRole detour-agent", "create", "", "events", ""}, tellsOwners, false},
	{right{"ClusterRole detour-agent", "patch", "", "events", ""}, countsRepetitions, false},
	{right{"ClusterRole detour-agent-evict", "create", "", "pods/eviction", ""}, evicts, false},
	{right{"ClusterRole detour-agent-ready-node", "get", "", "nodes", ""}, marksItsNode, false},
	{right{"ClusterRole detour-agent-ready-node", "patch", "", "nodes", ""}, marksItsNode, false},
	{right{"ClusterRole detour-meshconfig", "get", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"}, looksUpLive, false},
	{right{"ClusterRole detour-meshconfig", "list", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"}, followsConfig, true},
	{right{"ClusterRole detour-meshconfig", "watch", "config.openservicemesh.io", "meshconfigs", "osm-mesh-config"}, followsConfig, false},
	// istio in a namespace other than that of the Role, or installed after detour.
	{right{"ClusterRole detour-meshconfig", "get", "", "configmaps", "istio"}, looksUpLive, false},
	{right{"ClusterRole detour-meshconfig", "list", "", "configmaps", "istio"}, followsConfig, true},
	{right{"ClusterRole detour-meshconfig", "watch", "", "configmaps", "istio"}, followsConfig, false},
	{right{"Role detour-revisions", "get", "", "configmaps", ""}, looksUpLive, false},
	{right{"Role detour-revisions", "list", "", "configmaps", ""}, followsConfig, true},
	{right{"Role detour-revisions", "watch", "", "configmaps", ""}, followsConfig, false},
}

var functions = []function{looksUpLive, waitsForSelectingPods, followsPods, followsConfig, tellsOwners, countsRepetitions, evicts, marksItsNode}

func TestTheAgentNeedsEachOfItsRights(t *testing.T) {
	t.Parallel()
	for _, tt := range agentsRights {
		t.Run(fmt.Sprint(tt.right, tt.oldServer), func(t *testing.T) {
			t.Parallel()
			d := deployAgent(t, tt.right, tt.oldServer)
			d.run()
			d.eventually("it says what is missing", func() bool { return tt.isMissedIn(tt.fails(d)) })
		})
	}
}

// With all its rights, and an API server of either kind, everything works, and nothing is asked for in vain.
func TestTheAgentNeedsNoOtherRight(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]right{"OSM": {}, "istio": {resource: "configmaps"}, "a revision of istio": {role: "Role detour-revisions"}} {
		for _, oldServer := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", oldServer), func(t *testing.T) {
				t.Parallel()
				d := deployAgent(t, r, oldServer)
				d.run()
				for i, works := range functions {
					if i >= 4 && name != "OSM" { // the others are the same for all meshes
						break
					}
					deadline := time.Now().Add(2 * settleTime)
					got := works(d)
					for ; got != "" && time.Now().Before(deadline); got = works(d) {
						time.Sleep(pollTime)
					}
					if got != "" {
						t.Errorf("function %d: %s", i, got)
					}
				}
				t.Logf("for scripts/leaks: %v %s", d.get("/api/v1/namespaces/"+d.pods+"/events"), d.metrics())
				if denied := kubernetes.denied(t, "system:serviceaccount:"+d.home+":detour-agent"); denied != nil {
					t.Errorf("it was refused %q", denied)
				}
			})
		}
	}
}

// deployedAgent is an agent as an overlay deploys it with everything that needs rights, less one of them.
type deployedAgent struct {
	*agentScene
	home        string // the installation's namespace
	annotations string // of its pods
	config      string // the name of their configuration
	uids        map[string]string
	before      map[string]string // how many lookups the cache had answered, by pod
}

// deployAgent takes the right away. Its group and role say of which mesh the agent is.
func deployAgent(t *testing.T, without right, oldServer bool) *deployedAgent {
	t.Helper()
	serveMeshConfigs(t)
	overlay := "overlays/osm"
	d := &deployedAgent{agentScene: newAgentSceneWithoutRights(t), annotations: "{}", config: "osm-mesh-config", uids: map[string]string{}, before: map[string]string{}}
	if without.resource == "configmaps" || without.role == "Role detour-revisions" {
		overlay, d.config = "overlays/istio", "istio"
	}
	var left []right
	d.home = installEdited(t, func(o object, _ string) {
		takeAway(t, o, without)
		left = append(left, rightsOf(t, o)...)
	}, overlay, "components/ready-node", "components/repair-evict")
	if without.role == "Role detour-revisions" {
		d.mesh, d.annotations, d.config = d.home, "{istio.io/rev: canary}", "istio-canary"
	}
	d.create(fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: %s}, spec: {taints: [{key: detour.io/not-ready, effect: NoSchedule}]}}", d.node))
	d.uids["elsewhere"] = d.meshedPod("elsewhere", "another-node")
	d.uids["free"] = d.meshedPod("free", d.node)
	d.setPort(16001)
	server := kubernetes.server
	if oldServer {
		server = withoutStreams(t)
	}
	if overlay == "overlays/istio" {
		d.conf.Dialect, _ = mesh.Find("istio")
		d.conf.Dialect.Config.Namespace = d.mesh
	}
	d.conf.Repair, d.conf.MarkNode, d.conf.MetricsAddr = repair.Evict, true, freeAddress(t)
	token := nodeToken(t, d.home, d.node)
	d.useToken(server, token)
	waitForRights(t, token, d.home, left)
	return d
}

// withoutStreams is the API server as it was before it listed as a stream of events.
func withoutStreams(t *testing.T) (server string) {
	t.Helper()
	target, err := url.Parse(kubernetes.server)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = kubernetes.as("").http.Transport
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // of watches that end with the test
	certificate, err := tls.LoadX509KeyPair(kubernetes.file("server.crt"), kubernetes.file("server.key"))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("sendInitialEvents") {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,"message":"sendInitialEvents is forbidden"}`)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	s.StartTLS()                                                   // client-go sends no token over plain HTTP
	t.Cleanup(func() { s.CloseClientConnections(); go s.Close() }) // which waits for the watches
	return s.URL
}

// meshedPod makes a pod that a controller owns and that has been running for some time; both meshes inject it.
func (d *deployedAgent) meshedPod(name, node string) (uid string) {
	d.t.Helper()
	p := d.createPod(name, node)
	patch := fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, annotations: %s}}", d.pods, name, d.annotations)
	if _, err := kubernetes.admin.expect(http.MethodPatch, podsOf(d.pods)+"/"+name+"?fieldManager=annotations&force=true", mustParse(d.t, patch).Object, http.StatusOK); err != nil {
		d.t.Fatal(err)
	}
	return string(p.GetUID())
}

// setPort writes a configuration by whose port it is recognized.
func (d *deployedAgent) setPort(port int) {
	d.t.Helper()
	if d.config == "osm-mesh-config" {
		d.createConfig(port)
		return
	}
	d.create(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {namespace: %s, name: %s}, data: {mesh: 'proxyListenPort: %d'}}", d.mesh, d.config, port))
}

// log is the agent's, "" if no right was missing so far.
func (d *deployedAgent) log() string {
	if text := d.logs.String(); strings.Contains(text, "forbidden") {
		return text
	}
	return ""
}

// metrics are the agent's, "" if it does not answer.
func (d *deployedAgent) metrics() string {
	resp, err := http.Get("http://" + d.conf.MetricsAddr + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	body.ReadFrom(resp.Body)
	return body.String()
}

// fromCache is how many lookups the cache has answered.
func (d *deployedAgent) fromCache() (line string) {
	_, rest, _ := strings.Cut(d.metrics(), `detour_lookups_total{from="cache"}`)
	line, _, _ = strings.Cut(rest, "\n")
	return line
}

// cached looks a pod up, which the cache has to answer with the words.
func (d *deployedAgent) cached(name, words string) string {
	if _, asked := d.before[name]; !asked {
		d.before[name] = d.fromCache() // metrics are served for a second before they are gathered anew
	}
	answer := d.lookup(name, d.uids[name])
	if answer.Error != "" || !strings.Contains(string(answer.Config), words) || d.fromCache() == d.before[name] {
		return "not from the cache; " + answer.Error + d.logs.String()
	}
	return d.log()
}

func looksUpLive(d *deployedAgent) string { return d.lookup("elsewhere", d.uids["elsewhere"]).Error }

func followsPods(d *deployedAgent) string {
	if d.uids["later"] == "" {
		d.uids["later"] = d.meshedPod("later", d.node)
	}
	return d.cached("later", "")
}

func followsConfig(d *deployedAgent) string {
	if d.uids["configured"] == "" {
		d.uids["configured"] = d.meshedPod("configured", d.node)
		d.setPort(16012)
	}
	return d.cached("configured", "16012")
}

func waitsForSelectingPods(d *deployedAgent) string {
	ctx, cancel := context.WithTimeout(d.t.Context(), settleTime)
	defer cancel()
	// On another node, whose label it may not touch.
	if err := agent.Unmark(ctx, d.conf.Kubeconfig, "gone-"+d.node, d.conf.Log, func() error { return nil }); err != nil {
		return err.Error()
	}
	return ""
}

func tellsOwners(d *deployedAgent) string {
	if d.eventsAbout("elsewhere") != "" {
		return ""
	}
	report := agentapi.Report{ID: pod.ID{Namespace: d.pods, Name: "elsewhere", UID: d.uids["elsewhere"]}, Outcome: "failed", Code: 100, Reason: "annotation x: no"}
	agentapi.Call(d.t.Context(), d.conf.StateDir+"/"+agent.DefaultSocket, agentapi.Request{Report: &report}, time.Second)
	return "no Event; " + d.logs.String()
}

// eventsAbout is what the pod's Events of detour say, with their counts.
func (d *deployedAgent) eventsAbout(pod string) (text string) {
	items, _ := d.get("/api/v1/namespaces/" + d.pods + "/events?fieldSelector=involvedObject.name%3D" + pod)["items"].([]any)
	for _, item := range items {
		event := item.(map[string]any)
		text += fmt.Sprintln(event["reason"], event["count"])
	}
	return text
}

// countsRepetitions takes the agent's recorder, but not its minutes between two writes.
func countsRepetitions(d *deployedAgent) string {
	about := pod.ID{Namespace: d.pods, Name: "repeated", UID: "1"}
	config, err := cache.RESTConfig(d.conf.Kubeconfig)
	if err != nil {
		return err.Error()
	}
	client, err := cache.NewClient(config, mesh.ConfigRef{})
	if err != nil {
		return err.Error()
	}
	ctx, stop := context.WithCancel(d.t.Context())
	defer stop()
	results := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "results"}, []string{"result"})
	r := events.NewRecorder(client, d.node, d.conf.Log, results)
	r.Window = 0
	go r.Run(ctx)
	r.Refused(about, "no")
	r.Refused(about, "no")
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); time.Sleep(pollTime) {
		if d.eventsAbout(about.Name) == "DetourRefused 2\n" {
			return ""
		}
		if text := d.log(); text != "" {
			return text
		}
	}
	return "no count of 2; " + d.logs.String()
}

func evicts(d *deployedAgent) string {
	p := d.get(podsOf(d.pods) + "/free")
	if p == nil || p["metadata"].(map[string]any)["deletionTimestamp"] != nil {
		return ""
	}
	return "not evicted; " + d.logs.String()
}

func marksItsNode(d *deployedAgent) string {
	n := d.get("/api/v1/nodes/" + d.node)
	labels, _ := n["metadata"].(map[string]any)["labels"].(map[string]any)
	if labels[pod.ReadyLabel] == "true" && !strings.Contains(fmt.Sprint(n["spec"]), agent.Taint) {
		return ""
	}
	return "not marked; " + d.logs.String()
}
