package upgrade

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// While a node is upgraded, and on the way back, its plugin is of one version and its agent of another. The plugin understands the
// entry that the agent has written, gets its answers, and tells it how ADD went. It can't ask anybody else.
func asksAnothersAgent(t *testing.T, first, second version) {
	for _, name := range []string{"osm/guide", "istio/injected-for-cni", "osm/skip-no-sidecar"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := testcase.Find(t, root, name)
			p := newPod(t, c)
			alone := newPod(t, c)
			alone.conf["backend"] = "nftables"
			alone.run(second, "ADD")

			a := startAgent(t, first, c)
			p.conf = a.entry(t, p.conf)
			p.run(second, "STATUS")
			p.run(second, "ADD")
			got, want := p.logged(), alone.logged()
			if got != want {
				t.Errorf("ADD is %+v, and by manifests %+v", got, want)
			}
			if got, want := p.rules(), alone.rules(); got != want {
				t.Errorf("the namespace has\n%s\nand by manifests\n%s", got, want)
			}
			a.wait(t, "/metrics", "detour_adds_total{", `outcome="`+got.Outcome+`"`, "} 1")
			p.run(second, "CHECK")
			p.run(second, "DEL")
			p.nothing()
		})
	}
}

var agents atomic.Uint32

// agent is a running `detour-agent run`.
type agent struct{ dir, metrics string }

// begin puts the ServiceAccount's files where a kubelet does, in a mount namespace of its own.
const begin = `set -e
mount -t tmpfs tmpfs "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io
cp -r "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"`

// startAgent starts a version's agent on a node with the case's pod, which may not be asked for at the API server, and waits until it
// is ready.
func startAgent(t *testing.T, v version, c testcase.Case) agent {
	t.Helper()
	server := serve(t, c)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "upgrade") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := agent{dir, fmt.Sprintf("127.%d.%d.%d:15014", 64+os.Getpid()>>8&63, os.Getpid()&255, 1+agents.Add(1))} // nobody else takes that port
	for name, content := range map[string]string{
		"conf/netconf.json":     `{"mesh": "` + c.Mesh + `", "backend": "nftables", "timeout": "1m"}`,
		"net.d/10-net.conflist": `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}`,
		"bin/bridge":            "somebody else's",
		"serviceaccount/token":  "token",
		"serviceaccount/ca.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", begin, "sh", dir+"/serviceaccount", filepath.Join(v.bin, "detour-agent"), "run", "--api-fallback=false",
		"--config="+dir+"/conf/netconf.json", "--plugin="+filepath.Join(v.bin, "detour"), "--metrics="+a.metrics,
		"--cni-bin-dir="+dir+"/bin", "--cni-conf-dir="+dir+"/net.d", "--state-dir="+dir+"/state")
	cmd.Env = append(os.Environ(), "NODE_NAME=n1", "KUBERNETES_SERVICE_HOST="+at.Hostname(), "KUBERNETES_SERVICE_PORT="+at.Port())
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // Pdeathsig is for the end of this thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, as it should be
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	a.wait(t, "/readyz", "")
	return a
}

// serve is an API server of node n1's pods and the mesh's configuration. Nobody gets a pod by its name.
func serve(t *testing.T, c testcase.Case) *httptest.Server {
	t.Helper()
	objects := agenttest.NewServer(t)
	request, pod, config := caseObjects(t, c)
	pod["spec"].(agenttest.Fields)["nodeName"] = "n1"
	path := agenttest.PodPath(request.Namespace, request.Name)
	objects.Put(path, pod)
	objects.Refuse["GET "+path] = agenttest.Refusal(http.StatusForbidden, "Forbidden")
	if config != nil {
		path := agenttest.ConfigPath
		if c.Mesh == "istio" {
			path = "/api/v1/namespaces/istio-system/configmaps/istio"
		}
		objects.Put(path, config)
	}
	server := httptest.NewTLSServer(objects)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return server
}

// wait waits until a path is answered with 200 and a line that has all these parts.
func (a agent) wait(t *testing.T, path string, parts ...string) {
	t.Helper()
	agenttest.Eventually(t, fmt.Sprintf("the agent's %s has %q", path, parts), func() bool {
		answer, err := http.Get("http://" + a.metrics + path)
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		return err == nil && answer.StatusCode == http.StatusOK && slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
			return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line, part) })
		})
	})
}

// entry is the net conf that a runtime makes of the agent's entry for the pod with that net conf.
func (a agent) entry(t *testing.T, of map[string]any) map[string]any {
	t.Helper()
	text, err := os.ReadFile(a.dir + "/net.d/10-net.conflist")
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Plugins []map[string]any }
	if err := json.Unmarshal(text, &list); err != nil || len(list.Plugins) != 2 {
		t.Fatalf("the agent has written %s, %v", text, err)
	}
	conf := list.Plugins[1]
	for _, field := range []string{"cniVersion", "name", "prevResult", "logFile"} {
		conf[field] = of[field]
	}
	return conf
}
