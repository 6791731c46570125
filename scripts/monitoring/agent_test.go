package monitoring

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/cniplugin"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// serveAgent runs an agent until the test's end and has a real ADD program a pod. It returns the address of its metrics.
func serveAgent(t *testing.T) string {
	t.Helper()
	w := nettest.StartWorld(t)
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	s.Put(agenttest.NodePath, agenttest.Fields{"kind": "Node", "apiVersion": "v1", "metadata": agenttest.Fields{"name": "n1"}})
	dir, err := os.MkdirTemp("", "agent") // t.TempDir's names are too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	addr := freeAddress(t)
	osm, _ := mesh.Find("osm")
	a, err := agent.New(agent.Config{
		Node: "n1", Options: decision.Options{Dialect: osm}, Kubeconfig: s.Kubeconfig(t), StateDir: dir, MetricsAddr: addr,
		MarkNode: true, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	must(t, err)
	agenttest.Start(t, a.Run)
	agenttest.Eventually(t, "the agent is ready", func() bool { return len(a.Missing(t.Context())) == 0 })

	socket := dir + "/" + agent.DefaultSocket
	conf, err := json.Marshal(agenttest.Fields{
		"cniVersion": "1.0.0", "name": "pods", "type": "detour", "mesh": "osm", "agentSocket": socket, "stateDir": dir, "timeout": "1m",
		"prevResult": agenttest.Fields{"cniVersion": "1.0.0", "ips": []agenttest.Fields{{"address": nettest.PodIPv4.String() + "/24"}}},
	})
	must(t, err)
	must(t, cniplugin.Funcs().Add(&skel.CmdArgs{
		ContainerID: "c1", Netns: w.Pod.Path(), IfName: nettest.PodLink, StdinData: conf,
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=uid-a",
	}))
	for _, r := range []agentapi.Report{
		{Outcome: "skipped", Reason: "it is not the mesh's"},
		{Outcome: "failed", Code: 100, Reason: "bad list"},
		{Outcome: "failed", Code: 11},
		{Outcome: "allowed", Code: 999, Fallback: true},
	} {
		r.ID = pod.ID{Namespace: "shop", Name: "b", UID: "uid-b"}
		_, err := agentapi.Call(t.Context(), socket, agentapi.Request{Report: &r}, nettest.Patience)
		must(t, err)
	}
	a.CountInstall("token")
	a.CountConflict()
	return addr
}

// freeAddress is one that nobody listens at.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
