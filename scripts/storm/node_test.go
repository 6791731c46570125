//go:build storm

package storm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/nettest"
)

// node is a host's network namespace with a runtime that drives the plugins by libcni, detour's state and, unless it is 0, an agent.
type node struct {
	t     *testing.T
	ns    *nettest.Namespace
	dir   string
	cni   *libcni.CNIConfig
	api   *agenttest.Server
	agent int // its PID
}

func newNode(t *testing.T, pods int) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "storm") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &node{t: t, ns: nettest.StartNamespace(t, "node"), dir: dir, api: agenttest.NewServer(t)}
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{programs(t)}, dir+"/cache", nil)
	n.api.Put(agenttest.ConfigPath, agenttest.Config())
	for i := range pods {
		pod := agenttest.Pod(podName(i))
		pod["status"] = agenttest.Fields{"phase": "Pending"}
		n.api.Put(agenttest.PodPath("shop", podName(i)), pod)
	}
	return n
}

func podName(i int) string { return fmt.Sprint("web-", i) }

// startAgent starts an agent in a process of its own and waits until it has an answer for each pod.
func (n *node) startAgent() {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentState+"="+n.dir+"/state", agentConfig+"="+n.api.Kubeconfig(n.t))
	cmd.Stderr = n.t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // Pdeathsig is for the end of this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it ends by a signal
		}
	}()
	if err := <-started; err != nil {
		n.t.Fatal(err)
	}
	n.agent = cmd.Process.Pid
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	agenttest.Eventually(n.t, "the agent is ready", func() bool { _, err := metrics("/readyz"); return err == nil })
}

// metrics asks the agent.
func metrics(path string) (string, error) {
	answer, err := http.Get("http://" + metricsAddr(os.Getpid()) + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, text)
	}
	return string(text), err
}

// metric is one of the agent's.
func (n *node) metric(name string) float64 {
	n.t.Helper()
	text, err := metrics("/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		n.t.Fatalf("the agent has no metric %s", name)
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		n.t.Fatal(err)
	}
	return value
}

// conf is detour's entry.
func (n *node) conf(backend string) map[string]any {
	conf := map[string]any{
		"type": "detour", "mesh": "osm", "backend": backend, "stateDir": n.dir + "/state", "logFile": n.dir + "/log",
		"timeout": "5m", // a busy machine is no reason to fail
	}
	if n.agent != 0 {
		conf["agentSocket"] = n.dir + "/state/agent.sock"
	} else {
		conf["kubeconfig"] = n.api.Kubeconfig(n.t)
	}
	return conf
}

// chain is bridge, host-local and another plugin.
func (n *node) chain(name string, last map[string]any) *libcni.NetworkConfigList {
	n.t.Helper()
	data, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": []any{map[string]any{
		"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": map[string]any{
			"type": "host-local", "dataDir": n.dir + "/ipam", "ranges": []any{[]any{map[string]any{"subnet": "10.99.0.0/16"}}},
		},
	}, last}})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// runtimeConf is what a runtime says of a pod in a network namespace.
func runtimeConf(i int, ns *nettest.Namespace) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: ns.Name(), NetNS: ns.Path(), IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", podName(i)}, {"K8S_POD_UID", "uid-" + podName(i)},
	}}
}

// add and del are the runtime's, on the node.
func (n *node) add(list *libcni.NetworkConfigList, i int, ns *nettest.Namespace) error {
	return n.ns.Do(func() error {
		_, err := n.cni.AddNetworkList(n.t.Context(), list, runtimeConf(i, ns))
		return err
	})
}

func (n *node) del(list *libcni.NetworkConfigList, i int, ns *nettest.Namespace) error {
	return n.ns.Do(func() error { return n.cni.DelNetworkList(n.t.Context(), list, runtimeConf(i, ns)) })
}

// files are what the state folder holds, but for the agent's socket.
func (n *node) files() []string {
	n.t.Helper()
	var files []string
	err := filepath.WalkDir(n.dir+"/state", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, strings.TrimPrefix(path, n.dir))
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return files
}
