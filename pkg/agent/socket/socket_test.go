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
	s.stop = agenttest.Start(t, func(ctx context.Context) error { s.Run(ctx); return nil })
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

func TestConnectionsThatEndMakeRoom(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	for range maxConnections + 1 {
		s.ask(t)
	}
}

// The longest request may follow another.
func TestEachRequestMayBeLong(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	conn := s.dial(t)
	long := strings.Replace(aLookup, ":", ":"+strings.Repeat(" ", agentapi.MaxLine*2/3), 1)
	for n := range 2 {
		if answer := exchange(t, conn, long); string(answer.Pod) != `"a"` {
			t.Errorf("request %d: %+v", n+1, answer)
		}
	}
}

func TestAPeerThatDoesNotReadIsNotWaitedForWithoutEnd(t *testing.T) {
	t.Parallel()
	s := start(t, func(s *served) {
		s.Patience = nettest.Silence
		s.Answer = func(context.Context, agentapi.Request) agentapi.Answer {
			return agentapi.Answer{Error: strings.Repeat("x", 4<<20)} // more than the socket's buffer holds
		}
	})
	fmt.Fprintln(s.dial(t), aLookup)
	time.Sleep(nettest.Silence / 2)
	s.stop()
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

// Silent clients hold nobody up.
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
