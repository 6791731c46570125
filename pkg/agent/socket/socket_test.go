package socket

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/pod"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// served is a server that answers each lookup with the pod's name, and counts.
type served struct {
	*Server
	malformed, reports atomic.Int64
	stop               func()
}

func (s *served) answer(_ context.Context, r agentapi.Request) agentapi.Answer {
	if r.Lookup == nil {
		s.reports.Add(1)
		return agentapi.Answer{}
	}
	return agentapi.Answer{Pod: json.RawMessage(fmt.Sprintf("%q", r.Lookup.Name))}
}

// start serves a socket in a folder of its own until the test ends or stop is called.
func start(t testing.TB, change func(*served)) *served {
	t.Helper()
	nettest.RequireNetns(t)               // root: the socket serves nobody else
	dir, err := os.MkdirTemp("", "agent") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &served{}
	s.Server = &Server{
		Path: filepath.Join(dir, "agent.sock"), Answer: s.answer, Malformed: func() { s.malformed.Add(1) },
		Patience: 2 * nettest.Patience, Check: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(2 * nettest.Patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(s.stop)
	agenttest.Eventually(t, "it serves", s.Serving)
	return s
}

func lookup(name string) agentapi.Request {
	return agentapi.Request{Lookup: &pod.ID{Namespace: "shop", Name: name, UID: "uid-" + name}}
}

func (s *served) ask(t testing.TB) {
	t.Helper()
	answer, err := agentapi.Call(t.Context(), s.Path, lookup("a"), nettest.Patience)
	if err != nil || answer.Error != "" || string(answer.Pod) != `"a"` {
		t.Errorf("%v, %+v", err, answer)
	}
}

func (s *served) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(3 * nettest.Patience))
	return conn
}

// exchange sends a request and returns the answer.
func exchange(t testing.TB, conn net.Conn, request string) agentapi.Answer {
	t.Helper()
	fmt.Fprintln(conn, request)
	var answer agentapi.Answer
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

const (
	aLookup = `{"lookup":{"namespace":"shop","name":"a","uid":"u"}}`
	aReport = `{"report":{"namespace":"shop","name":"a","uid":"u","outcome":"programmed"}}`
)

// An older plugin has a connection for each request, which it ends; the present one asks and reports over the same, and does not
// wait for the answer to its report.
func TestOldAndNewPluginsAreServed(t *testing.T) {
	t.Parallel()
	for name, requests := range map[string][]string{"old": {aLookup}, "new": {aLookup, aReport}, "in one go": {aLookup + aReport}} {
		s := start(t, nil)
		for range 20 {
			conn := s.dial(t)
			for _, r := range requests {
				if r == aReport {
					fmt.Fprintln(conn, r)
				} else if answer := exchange(t, conn, r); string(answer.Pod) != `"a"` {
					t.Errorf("%s: got %+v", name, answer)
				}
			}
			if name == "old" {
				conn.Close()
				conn = s.dial(t)
				fmt.Fprintln(conn, aReport)
			}
			time.Sleep(time.Millisecond) // often the answer to the report arrives, which nobody reads
			conn.Close()
		}
		agenttest.Eventually(t, "all reports: "+name, func() bool { return s.reports.Load() == 20 })
		s.stop()
		if n := s.malformed.Load(); n > 0 {
			t.Errorf("%s: %d requests are called malformed", name, n)
		}
	}
}

// A peer that says nothing, at first or after an answer, is not waited for without end; that is no malformed request.
func TestSilentConnectionsEnd(t *testing.T) {
	t.Parallel()
	s := start(t, func(s *served) { s.Patience = nettest.Silence })
	for _, first := range []string{"", aLookup} {
		conn := s.dial(t)
		if first != "" {
			exchange(t, conn, first)
		}
		began := time.Now()
		if rest, err := io.ReadAll(conn); err != nil || len(bytes.TrimSpace(rest)) > 0 {
			t.Errorf("after %q: %q, %v", first, rest, err)
		}
		if took := time.Since(began); took < nettest.Silence/2 || took > nettest.Patience {
			t.Errorf("after %q: ended after %s", first, took)
		}
	}
	if n := s.malformed.Load(); n > 0 {
		t.Errorf("%d requests are called malformed", n)
	}
}

// Half a request is malformed, the second as well as the first.
func TestHalfARequestIsNotWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	s := start(t, func(s *served) { s.Patience = nettest.Silence })
	for n, first := range []string{"", aLookup} {
		conn := s.dial(t)
		if first != "" {
			exchange(t, conn, first)
		}
		fmt.Fprint(conn, aLookup[:30])
		if answer, _ := io.ReadAll(conn); !strings.Contains(string(answer), "i/o timeout") || s.malformed.Load() != int64(n+1) {
			t.Errorf("after %q: %q, %d are called malformed", first, answer, s.malformed.Load())
		}
	}
}

// The context of an answer ends with the peer, and not because the peer has sent more.
func TestAnAnswerEndsWithItsPeer(t *testing.T) {
	t.Parallel()
	var asked, ended atomic.Int64
	s := start(t, func(s *served) {
		s.Answer = func(ctx context.Context, _ agentapi.Request) agentapi.Answer {
			asked.Add(1)
			<-ctx.Done()
			ended.Add(1)
			return agentapi.Answer{}
		}
	})
	conn := s.dial(t)
	fmt.Fprintln(conn, aLookup)
	agenttest.Eventually(t, "it is asked", func() bool { return asked.Load() == 1 })
	fmt.Fprintln(conn, aReport)
	time.Sleep(50 * time.Millisecond)
	if ended.Load() != 0 {
		t.Error("it ended although the peer is there")
	}
	conn.Close()
	agenttest.Eventually(t, "it ends", func() bool { return ended.Load() == 1 })
}

// A request that comes while the one before is answered is not lost.
func TestARequestDuringAnAnswerIsAnswered(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	s := start(t, func(s *served) {
		s.Answer = func(ctx context.Context, r agentapi.Request) agentapi.Answer {
			if r.Lookup != nil {
				close(asked)
				<-release
			}
			return s.answer(ctx, r)
		}
	})
	conn := s.dial(t)
	fmt.Fprintln(conn, aLookup)
	<-asked
	fmt.Fprintln(conn, aReport)
	time.Sleep(20 * time.Millisecond)
	close(release)
	answers := json.NewDecoder(conn)
	for range 2 {
		if err := answers.Decode(&agentapi.Answer{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.reports.Load(); n != 1 {
		t.Errorf("%d reports", n)
	}
}

// An idle connection does not keep the server from ending.
func TestIdleConnectionsDoNotHoldUpTheEnd(t *testing.T) {
	t.Parallel()
	s := start(t, func(s *served) { s.Patience = time.Hour })
	for _, request := range []string{"", aLookup} {
		if conn := s.dial(t); request != "" {
			exchange(t, conn, request)
		}
	}
	s.stop()
}

func TestTheSocketIsRootsAlone(t *testing.T) {
	t.Parallel()
	a := start(t, nil)
	for path, want := range map[string]os.FileMode{a.Path: os.ModeSocket | 0o600, filepath.Dir(a.Path): os.ModeDir | 0o700} {
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != want {
			t.Errorf("%s: %v, mode %v, want %v", path, err, info.Mode(), want)
		}
	}
	a.stop()
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(a.Path), "*")); left != nil {
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
	_, err := agentapi.Call(t.Context(), socket, lookup("a"), 2*time.Second)
	fmt.Printf("UID %d: %v\n", os.Getuid(), err)
	if errors.Is(err, agentapi.ErrNobody) {
		os.Exit(42)
	}
}

func TestAnotherUserGetsNoAnswer(t *testing.T) {
	t.Parallel()
	a := start(t, nil)
	binary := filepath.Join(filepath.Dir(a.Path), "client")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil || os.WriteFile(binary, self, 0o755) != nil {
		t.Fatal(err)
	}
	run := func(uid uint32) (string, error) {
		cmd := exec.Command(binary, "-test.run=^TestAsAnotherUser$", "-test.v")
		cmd.Env = append(os.Environ(), clientSocket+"="+a.Path, "TMPDIR=/tmp", "REQUIRE_NETNS=")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(0); err != nil {
		t.Fatalf("root is refused: %v: %s", err, out)
	}
	// Even if the modes were wrong.
	for path, mode := range map[string]os.FileMode{filepath.Dir(a.Path): 0o755, a.Path: 0o666} {
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
	a := start(t, nil)
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
		if err := json.Unmarshal([]byte(raw(t, a.Path, []byte(tt.request))), &answer); err != nil || !strings.Contains(answer.Error, tt.words) {
			t.Errorf("%s: %v, %+v", tt.name, err, answer)
		}
	}
}

// Clients that say nothing hold no one up, and end in time.
func TestSlowClientsDoNotHoldUpOthers(t *testing.T) {
	t.Parallel()
	a := start(t, nil)
	for range 50 {
		conn, err := net.Dial("unix", a.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	a.ask(t)
	a.stop() // with the fifty still there
}

func TestAHundredLookupsAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			for range 5 {
				s.ask(t)
			}
		})
	}
	all.Wait()
}

func TestAnAgentTakesOverWhatAnotherLeft(t *testing.T) {
	t.Parallel()
	old := start(t, nil)
	young := start(t, func(s *served) { s.Path = old.Path })
	if old.Serving() {
		t.Error("both think that the socket is theirs")
	}
	old.stop() // must not take the young one's socket away
	young.ask(t)
	if err := os.Remove(young.Path); err != nil {
		t.Fatal(err)
	}
	agenttest.Eventually(t, "a deleted socket is made again", young.Serving)
	young.ask(t)
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
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	file := filepath.Join(dir, "file")
	os.WriteFile(file, []byte("precious"), 0o600)
	if _, err := listen(t.Context(), file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if data, _ := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file is %q", data)
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
	})
}
