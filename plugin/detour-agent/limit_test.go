package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// asAgent in the environment makes this test's binary the agent.
const asAgent = "DETOUR_AGENT_TEST_MAIN"

// manifest is what the DaemonSet gives the agent: its memory, and its environment where that is a plain value.
func manifest(t *testing.T) (bytes int64, env []string) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/base/daemonset.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Env       []struct{ Name, Value string }
						Resources struct{ Limits struct{ Memory string } }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	agent := d.Spec.Template.Spec.Containers[0]
	limit, err := resource.ParseQuantity(agent.Resources.Limits.Memory)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range agent.Env {
		if e.Value != "" {
			env = append(env, e.Name+"="+e.Value)
		}
	}
	return limit.Value(), env
}

// newCgroup makes a cgroup that may have so much memory, until the test ends, and returns its folder.
func newCgroup(t *testing.T, bytes int64) string {
	t.Helper()
	nettest.RequireNetns(t)
	dir, err := makeCgroup(fmt.Sprintf("detour-test-%d-%d", os.Getpid(), time.Now().UnixNano()), bytes)
	switch {
	case err != nil && os.Getenv("REQUIRE_NETNS") == "1":
		t.Fatalf("REQUIRE_NETNS=1, but: %v", err)
	case err != nil:
		t.Skipf("skipped: %v", err)
	}
	t.Cleanup(func() {
		eventually(t, "the cgroup is empty", func() bool { return !errors.Is(os.Remove(dir), syscall.EBUSY) })
	})
	return dir
}

func makeCgroup(name string, bytes int64) (string, error) {
	dir, limit := "/sys/fs/cgroup/memory/"+name, "memory.limit_in_bytes"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		dir, limit = "/sys/fs/cgroup/"+name, "memory.max"
		if err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
			return "", fmt.Errorf("let cgroups limit memory: %w", err)
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, limit), []byte(strconv.FormatInt(bytes, 10)), 0); err != nil {
		return "", errors.Join(fmt.Errorf("limit a cgroup's memory: %w", err), os.Remove(dir))
	}
	return dir, nil
}

// limited is an agent that has what the manifest gives it.
type limited struct {
	state   string // its folder
	metrics string // HOST:PORT
	pid     int
	ended   chan struct{}
	how     error
}

// begin enters the cgroup and puts the ServiceAccount's files where a kubelet does, in a mount namespace of its own.
const begin = `set -e
echo $$ > "$1/cgroup.procs"
mount -t tmpfs tmpfs "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io
cp -r "$2" /var/run/secrets/kubernetes.io/serviceaccount
shift 2
exec "$@"`

// token is one that expires at Unix time 1795000000.
const token = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3OTUwMDAwMDB9.c2ln"

// startLimited starts the agent of a node of the API server's, in a cgroup and an environment as the manifest has them.
func startLimited(t *testing.T, s *bigServer) *limited {
	t.Helper()
	bytes, env := manifest(t)
	cgroup := newCgroup(t, bytes)
	host := node(t)
	credential := filepath.Dir(put(t, filepath.Join(t.TempDir(), "token"), token))
	put(t, filepath.Join(credential, "ca.crt"), s.ca())
	state, err := os.MkdirTemp("", "limited") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	a := &limited{state: state, metrics: freeAddress(t), ended: make(chan struct{})}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", begin, "sh", cgroup, credential, self, "run",
		"--config="+put(t, filepath.Join(t.TempDir(), "netconf.json"), `{"mesh": "osm"}`),
		"--plugin="+put(t, filepath.Join(t.TempDir(), "detour"), "the plugin"),
		"--cni-bin-dir="+host.bin, "--cni-conf-dir="+host.conf, "--metrics="+a.metrics, "--state-dir="+state)
	cmd.Env = append(append(os.Environ(), env...), asAgent+"=1", "NODE_NAME=n1",
		"KUBERNETES_SERVICE_HOST="+s.host(), "KUBERNETES_SERVICE_PORT="+s.port())
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.pid = cmd.Process.Pid
	go func() {
		a.how = cmd.Wait()
		close(a.ended)
	}()
	t.Cleanup(func() {
		t.Logf("resident: %s now, %s at most", a.status("VmRSS"), a.status("VmHWM"))
		syscall.Kill(a.pid, syscall.SIGKILL)
		<-a.ended
	})
	return a
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// status is a line of the process's status, which is the kernel's.
func (a *limited) status(field string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid))
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// wait waits until ok. An agent that has ended fails the test.
func (a *limited) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		select {
		case <-a.ended:
			t.Fatalf("%s: the agent has ended: %v", what, a.how)
		default:
		}
		return ok()
	})
}

// healthy reports whether the path is answered by OK within the time that the manifest's probes have.
func (a *limited) healthy(path string) bool {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + a.metrics + path)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// knows reports whether the agent has the pod: the test's API server would not have it alone.
func (a *limited) knows(t *testing.T, name string) bool {
	t.Helper()
	lookup := pod.ID{Namespace: "shop", Name: name, UID: "uid-" + name}
	answer, err := agentapi.Call(t.Context(), filepath.Join(a.state, "agent.sock"), agentapi.Request{Lookup: &lookup}, 30*time.Second)
	if err != nil || answer.Error != "" {
		return false
	}
	p, err := pod.Parse(answer.Pod)
	if err != nil || p.Name != name || len(p.Containers) != 2 {
		t.Errorf("%s: %v %.1000s", name, err, answer.Pod)
	}
	return true
}

func TestAHundredPodsOf1400kBFitIntoTheMemoryOfTheManifest(t *testing.T) {
	for name, streams := range map[string]bool{"as a stream of events": true, "as one list": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newBigServer(t, 100, 1_400_000, streams)
			a := startLimited(t, s)
			a.wait(t, "it knows the last change", func() bool { return a.knows(t, lastPod) })
			for i := range s.pods {
				if name := bigPodName(i); !a.knows(t, name) {
					t.Errorf("%s is not known", name)
				}
			}
			a.wait(t, "it is ready", func() bool { return a.healthy("/healthz") && a.healthy("/readyz") })
		})
	}
}

// Pods that start before the agent has heard of them are asked for.
func TestManyLongPodsAtOnceThatAreAskedForFitIntoTheMemoryOfTheManifest(t *testing.T) {
	s := newBigServer(t, 1, 100, true)
	a := startLimited(t, s)
	a.wait(t, "it is ready", func() bool { return a.healthy("/readyz") })
	const pods = 100
	answered := make(chan bool, pods)
	for i := range pods {
		go func() {
			name := fmt.Sprint(unlisted, i)
			for !a.knows(t, name) && t.Context().Err() == nil {
				time.Sleep(50 * time.Millisecond)
			}
			answered <- true
		}()
	}
	a.wait(t, "all are answered", func() bool { return len(answered) == pods })
}

// Whoever reaches the node's port opens connections, asks for the metrics and never reads them.
func TestConnectionsThatAreNeverReadFitIntoTheMemoryOfTheManifest(t *testing.T) {
	s := newBigServer(t, 1, 100, true)
	a := startLimited(t, s)
	a.wait(t, "it is ready", func() bool { return a.healthy("/readyz") })
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			conn.Close()
		}
	}()
	for range 6000 {
		conn, err := net.Dial("tcp", a.metrics)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		conn.(*net.TCPConn).SetReadBuffer(1)
		fmt.Fprint(conn, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: n1\r\n\r\n", 20))
	}
	a.wait(t, "/healthz is answered", func() bool { return a.healthy("/healthz") })
	a.wait(t, "lookups and /readyz are answered", func() bool { return a.healthy("/readyz") && a.knows(t, lastPod) })
}
