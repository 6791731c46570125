package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

// startServed returns an agent that knows pod shop/a, and its stop.
func startServed(t testing.TB, change func(*Config)) (*apiServer, *Agent, func()) {
	t.Helper()
	nettest.RequireNetns(t) // root, whom alone the socket serves
	s := newAPIServer(t)
	s.put(podPath("shop", "a"), testPod("a"))
	s.put(configPath, testConfig())
	a := newTestAgent(t, s, change)
	stop := start(t, a)
	eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.at(a.conf.Socket) })
	return s, a, stop
}

func TestTheSocketIsRootsAlone(t *testing.T) {
	t.Parallel()
	_, a, stop := startServed(t, nil)
	for path, want := range map[string]os.FileMode{a.conf.Socket: os.ModeSocket | 0o600, a.conf.StateDir: os.ModeDir | 0o700} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, mode %v, want %v", path, err, info.Mode(), want)
		}
	}
	stop()
	if left, _ := filepath.Glob(filepath.Join(a.conf.StateDir, "*")); left != nil {
		t.Errorf("left behind: %q", left)
	}
}

const clientSocket = "AGENT_TEST_SOCKET"

// TestAsAnotherUser is run by the test below, as another user.
func TestAsAnotherUser(t *testing.T) {
	socket := os.Getenv(clientSocket)
	if socket == "" {
		t.Skip("it is part of another test")
	}
	_, err := agentapi.Call(t.Context(), socket, agentapi.Request{Lookup: &pod.ID{Namespace: "shop", Name: "a", UID: "uid-a"}}, 2*time.Second)
	fmt.Printf("UID %d: %v\n", os.Getuid(), err)
	if errors.Is(err, agentapi.ErrNobody) {
		os.Exit(42)
	}
}

func TestAnotherUserGetsNoAnswer(t *testing.T) {
	t.Parallel()
	_, a, _ := startServed(t, nil)
	binary := filepath.Join(a.conf.StateDir, "client")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil || os.WriteFile(binary, self, 0o755) != nil {
		t.Fatal(err)
	}
	run := func(uid uint32) (string, error) {
		cmd := exec.Command(binary, "-test.run=^TestAsAnotherUser$", "-test.v")
		cmd.Env = append(os.Environ(), clientSocket+"="+a.conf.Socket, "TMPDIR=/tmp", "REQUIRE_NETNS=")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(0); err != nil {
		t.Fatalf("root is refused: %v: %s", err, out)
	}
	// Even if the modes were wrong.
	for path, mode := range map[string]os.FileMode{a.conf.StateDir: 0o755, a.conf.Socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	out, err := run(1500)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 42 || !strings.Contains(out, "UID 1500") {
		t.Errorf("UID 1500: %v: %s", err, out)
	}
}

// raw sends bytes and returns what comes back until the agent hangs up.
func raw(t testing.TB, socket string, data []byte) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(3 * nettest.Patience))
	go conn.Write(data) // the agent may hang up first
	out, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	return string(out)
}

func TestARequestThatMakesNoSenseIsAnError(t *testing.T) {
	t.Parallel()
	_, a, _ := startServed(t, nil)
	tests := []struct{ name, request, words string }{
		{"nothing", "{}\n", "either a lookup or a report"},
		{"a lookup and readiness", `{"lookup":{"namespace":"shop","name":"a"},"ready":true}` + "\n", "either a lookup or a report"},
		{"both", `{"lookup":{"namespace":"shop","name":"a"},"report":{"outcome":"failed"}}` + "\n", "either a lookup or a report"},
		{"no JSON", "GET / HTTP/1.1\r\n\r\n", "invalid character"},
		{"a wrong type", `{"lookup":{"namespace":1}}` + "\n", "cannot unmarshal"},
		{"a path", `{"lookup":{"namespace":"../../secrets","name":"x"}}` + "\n", "is not a pod's name"},
		{"no name", `{"lookup":{"namespace":"shop"}}` + "\n", "is not a pod's name"},
		{"an outcome", `{"report":{"namespace":"shop","name":"a","outcome":"x"}}` + "\n", `none of ["programmed`},
		{"too long", `{"lookup":{"namespace":"` + strings.Repeat("x", agentapi.MaxLine) + `"}}` + "\n", "longer than 8388608 bytes"},
		{"deep", strings.Repeat("[", 100000), "max depth"},
	}
	for _, tt := range tests {
		var answer agentapi.Answer
		if err := json.Unmarshal([]byte(raw(t, a.conf.Socket, []byte(tt.request))), &answer); err != nil || !strings.Contains(answer.Error, tt.words) {
			t.Errorf("%s: %v, %+v", tt.name, err, answer)
		}
	}
}

func TestHalfARequestIsNotWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t) // root, whom alone the socket serves
	a := newTestAgent(t, newAPIServer(t), nil)
	a.timing.request = nettest.Silence
	start(t, a)
	eventually(t, "the agent serves", func() bool { return a.socket.at(a.conf.Socket) })
	if answer := raw(t, a.conf.Socket, []byte(`{"lookup":{"namespace":"shop"`)); !strings.Contains(answer, "i/o timeout") {
		t.Errorf("got %q", answer)
	}
}

// Clients that say nothing hold no one up, and end in time.
func TestSlowClientsDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	_, a, stop := startServed(t, nil)
	for range 50 {
		conn, err := net.Dial("unix", a.conf.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if answer := ask(t, a, "a", "uid-a"); answer.Error != "" {
		t.Error(answer.Error)
	}
	stop() // with the fifty still there
}

func TestAHundredLookupsAtOnce(t *testing.T) {
	t.Parallel()
	_, a, _ := startServed(t, nil)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			for range 5 {
				if answer := ask(t, a, "a", "uid-a"); answer.Error != "" || len(answer.Pod) == 0 {
					t.Errorf("%+v", answer)
				}
			}
		})
	}
	all.Wait()
}

func TestAnAgentTakesOverWhatAnotherLeft(t *testing.T) {
	t.Parallel()
	s, old, stop := startServed(t, nil)
	young := newTestAgent(t, s, func(c *Config) { c.StateDir = old.conf.StateDir })
	start(t, young)
	eventually(t, "the young one has taken the path", func() bool { return young.isSynced() && young.socket.at(young.conf.Socket) })
	if old.socket.at(old.conf.Socket) {
		t.Error("both think that the socket is theirs")
	}
	stop() // must not take the young one's socket away
	if answer := ask(t, young, "a", "uid-a"); answer.Error != "" {
		t.Error(answer.Error)
	}
	if err := os.Remove(young.conf.Socket); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted socket is made anew", func() bool { return young.socket.at(young.conf.Socket) })
	if answer := ask(t, young, "a", "uid-a"); answer.Error != "" {
		t.Error(answer.Error)
	}
}

func TestAStaleSocketIsReplacedAndAnythingElseIsNot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	l, err := listenSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "file")
	os.WriteFile(file, []byte("precious"), 0o600)
	if _, err := listenSocket(t.Context(), file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file is %q", data)
	}
}

func TestConfigurationsThatCanNotBe(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	good := func() Config {
		return Config{Node: "n1", Options: decision.Options{Dialect: osm(t)}, Kubeconfig: s.kubeconfig(t)}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for words, change := range map[string]func(*Config){
		"is not a node's name":     func(c *Config) { c.Node = "a/b" },
		"there is no mesh":         func(c *Config) { c.Dialect.Name = "" },
		"not in the state folder":  func(c *Config) { c.Socket = "/run/agent.sock" },
		"none of report, evict":    func(c *Config) { c.Repair = "mend" },
		"no such file":             func(c *Config) { c.Kubeconfig = "/nonexistent" },
		"unable to load in-cluste": func(c *Config) { c.Kubeconfig = "" },
	} {
		c := good()
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}
}

func TestRunFailsIfItCanNotServe(t *testing.T) {
	t.Parallel()
	s := newAPIServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	taken := newTestAgent(t, s, func(c *Config) { c.MetricsAddr = s.Listener.Addr().String() })
	if err := taken.Run(ctx); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("the port is taken: %v", err)
	}
	blocked := newTestAgent(t, s, nil)
	os.Mkdir(blocked.conf.Socket, 0o700)
	if err := blocked.Run(ctx); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a folder in the socket's place: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"lookup":{"namespace":"shop","name":"a","uid":"u"}}` + "\n"))
	f.Add([]byte(`{"report":{"namespace":"shop","name":"a","uid":"u","outcome":"failed","code":100,"stages":{"total":1.5}}}`))
	f.Add([]byte(`{"report":{"outcome":"skipped"}}{}`))
	f.Add([]byte(`[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := newRequests(bytes.NewReader(data)).next()
		if err != nil {
			return
		}
		if r.Ready == ((r.Lookup == nil) != (r.Report == nil)) || r.Lookup != nil && r.Report != nil {
			t.Errorf("%q: none or more than one", data)
		}
		if l := r.Lookup; l != nil && strings.ContainsAny(l.Namespace+l.Name, "/?#%") {
			t.Errorf("%q would be another path", data)
		}
		if r.Report != nil {
			if class := reasonClass(*r.Report); class == "" {
				t.Errorf("%q: no class", data)
			}
		}
	})
}
