package kube

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/pod"
)

// agent answers at a socket with what answers has, one after the other, the last again and again; nil answers nothing.
func agent(t *testing.T, answers ...*agentapi.Answer) (socket string, asked chan agentapi.Request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	asked = make(chan agentapi.Request, 100)
	go func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			var r agentapi.Request
			_ = json.NewDecoder(conn).Decode(&r)
			asked <- r
			if a := answers[min(i, len(answers)-1)]; a != nil {
				_ = json.NewEncoder(conn).Encode(a)
				conn.Close()
			}
		}
	}()
	return socket, asked
}

// slowly answers everybody after a time, all at once.
func slowly(t *testing.T, after time.Duration, a *agentapi.Answer) (socket string, asked *atomic.Int32) {
	t.Helper()
	socket, asked = filepath.Join(t.TempDir(), "s"), new(atomic.Int32)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			asked.Add(1)
			go func() {
				defer conn.Close()
				time.Sleep(after)
				_ = json.NewEncoder(conn).Encode(a)
			}()
		}
	}()
	return socket, asked
}

var cached = &agentapi.Answer{Pod: json.RawMessage(podJSON), Config: json.RawMessage(configJSON)}

func TestTheAgentsAnswerIsTaken(t *testing.T) {
	t.Parallel()
	socket, asked := agent(t, cached)
	r := request
	r.UID = "u1"
	got, err := NewAgent(socket, "/nowhere").Lookup(within(t, 10*time.Second), r)
	if err != nil || string(got.Pod) != podJSON || string(got.Config) != configJSON {
		t.Errorf("got %s, %s, %v", got.Pod, got.Config, err)
	}
	if l := (<-asked).Lookup; l == nil || *l != (pod.ID{Namespace: "shop", Name: "web", UID: "u1"}) {
		t.Errorf("asked for %+v", l)
	}
}

func TestAPodThatTheAgentDoesNotFindIsNotFound(t *testing.T) {
	t.Parallel()
	socket, _ := agent(t, &agentapi.Answer{NotFound: true})
	if _, err := NewAgent(socket, "").Lookup(within(t, 10*time.Second), request); !errors.Is(err, ErrNotFound) {
		t.Errorf("got error %v", err)
	}
}

func TestTheAPIServerIsAskedIfTheAgent(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	silent, _ := agent(t, (*agentapi.Answer)(nil))
	failing, _ := agent(t, &agentapi.Answer{Error: "no"})
	for name, socket := range map[string]string{"is not there": gone, "accepts and says nothing": silent, "has no answer": failing} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
			got, err := NewAgent(socket, kubeconfig(t, s.URL, s.ca())).Lookup(within(t, 10*time.Second), request)
			if err != nil || string(got.Pod) != podJSON {
				t.Errorf("got %s, %v", got.Pod, err)
			}
			if !strings.Contains(got.Fallback, "ask the agent for pod shop/web: ") {
				t.Errorf("it does not say why the API server was asked: %q", got.Fallback)
			}
		})
	}
}

func TestAnAgentThatIsSlowIsWaitedFor(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
	socket, asked := slowly(t, 300*time.Millisecond, cached)
	got, err := NewAgent(socket, kubeconfig(t, s.URL, s.ca())).Lookup(within(t, time.Minute), request)
	if err != nil || got.Fallback != "" || s.count(podPath) != 0 || asked.Load() != 1 {
		t.Errorf("fallback %q, %v; %d requests to the API server, %d to the agent", got.Fallback, err, s.count(podPath), asked.Load())
	}
}

// A hung agent leaves the API server half of the time. Where there is none to ask, the agent may take as long as the ADD has:
// asking anew would begin at the end of its queue.
func TestHowLongTheAgentMayTake(t *testing.T) {
	t.Parallel()
	ctx := within(t, time.Hour)
	for kubeconfig, want := range map[string]time.Duration{"/nowhere": 30 * time.Minute, "": time.Hour} {
		if got := NewAgent("/nowhere", kubeconfig).patience(ctx); got > want || got < want-5*time.Minute {
			t.Errorf("kubeconfig %q: %s, want %s", kubeconfig, got, want)
		}
	}
}

func TestWithoutAnAPIServerTheAgentIsWaitedFor(t *testing.T) {
	t.Parallel()
	socket, asked := slowly(t, time.Second, cached)
	if _, err := NewAgent(socket, "").Lookup(within(t, time.Minute), request); err != nil || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
}

func TestWithoutAnAPIServerTheAgentIsAskedAgain(t *testing.T) {
	t.Parallel()
	socket, _ := agent(t, &agentapi.Answer{Error: "the cache is not filled yet"}, cached)
	if _, err := NewAgent(socket, "").Lookup(within(t, 10*time.Second), request); err != nil {
		t.Error(err)
	}
}

func TestAnAgentThatStaysAwayIsNamedAtTheDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := NewAgent("/nowhere/agent.sock", "").Lookup(ctx, request)
	if !errors.Is(err, agentapi.ErrNobody) || !strings.Contains(err.Error(), "/nowhere/agent.sock") || !strings.Contains(err.Error(), "is detour-agent running") {
		t.Errorf("got error %v", err)
	}
}

// What the agent has found out is the error, not that it had too little time for the last attempt.
func TestWhatTheAgentSaidIsTheErrorAtTheDeadline(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]*agentapi.Answer{"it has no time": {Error: "no time"}, "it says nothing more": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), enough/2)
			defer cancel()
			socket, asked := agent(t, &agentapi.Answer{Error: "the API server forbids it"}, last)
			_, err := NewAgent(socket, "").Lookup(ctx, request)
			if err == nil || !strings.HasSuffix(err.Error(), "the API server forbids it") {
				t.Errorf("got error %v", err)
			}
			if w := (<-asked).Within; w <= 0 || w > enough/2 {
				t.Errorf("the agent is given %s", w)
			}
		})
	}
}

func TestReadyAsksTheAgentOrTheAPIServer(t *testing.T) {
	t.Parallel()
	there, asked := agent(t, &agentapi.Answer{})
	if err := NewAgent(there, "/nowhere").Ready(within(t, 10*time.Second), request.Config); err != nil {
		t.Error(err)
	}
	if r := <-asked; !r.Ready || r.Lookup != nil || len(asked) != 0 {
		t.Errorf("asked for %+v, and %d times more", r, len(asked))
	}
	notReady, _ := agent(t, &agentapi.Answer{Error: "cache: it is not complete"})
	if err := NewAgent(notReady, "").Ready(within(t, 10*time.Second), request.Config); err == nil || !strings.Contains(err.Error(), "cache: it is not complete") {
		t.Errorf("got error %v", err)
	}
	if err := NewAgent("/nowhere", "").Ready(within(t, 10*time.Second), request.Config); err == nil {
		t.Error("ready without anybody")
	}
	s := newServer(t, true, routes{"/api/v1/namespaces/osm-system/pods/detour-status": answer(404, strings.ReplaceAll(noPod, "web", "detour-status")), newConfig: answer(200, configJSON)})
	for _, socket := range []string{"/nowhere", notReady} {
		if err := NewAgent(socket, kubeconfig(t, s.URL, s.ca())).Ready(within(t, 10*time.Second), request.Config); err != nil {
			t.Errorf("%s: %v", socket, err)
		}
	}
}

// The token on the host ends with the agent's pod that it is bound to; the agent that comes next answers itself.
func TestARefusedTokenIsNoReasonToFailWhileTheAgentMayComeBack(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{podPath: answer(401, unauthorized), newConfig: answer(401, unauthorized)})
	path := kubeconfig(t, s.URL, s.ca())
	socket, _ := agent(t, &agentapi.Answer{Error: "the cache is not filled yet"}, cached)
	if _, err := NewAgent(socket, path).Lookup(within(t, 10*time.Second), request); err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := NewAgent("/nowhere/agent.sock", path).Lookup(ctx, request)
	if err == nil || !strings.Contains(err.Error(), "401") || !strings.Contains(err.Error(), "is detour-agent running") {
		t.Errorf("got error %v", err)
	}
}

// talk serves one connection after the other with serve, which sees its requests, and counts the connections.
func talk(t *testing.T, serve func(n int, conn net.Conn, requests *json.Decoder)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		n := 0
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			n++
			serve(n, conn, json.NewDecoder(conn))
		}
	}()
	return socket
}

func TestTheReportGoesOverTheLookupsConnectionWhileThatLives(t *testing.T) {
	for name, c := range map[string]struct {
		hangUp     bool // after the lookup, as agents of earlier versions do
		connection int
	}{"the agent waits for more": {false, 1}, "the agent hangs up after an answer": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			type report struct {
				agentapi.Report
				connection int
			}
			reports, hungUp := make(chan report, 2), make(chan bool, 2)
			socket := talk(t, func(n int, conn net.Conn, requests *json.Decoder) {
				defer conn.Close()
				var r agentapi.Request
				for requests.Decode(&r) == nil {
					if r.Report != nil {
						reports <- report{*r.Report, n}
						return
					}
					_ = json.NewEncoder(conn).Encode(cached)
					if c.hangUp {
						conn.Close()
						hungUp <- true
						return
					}
					r = agentapi.Request{}
				}
			})
			a := NewAgent(socket, "")
			if _, err := a.Lookup(within(t, 10*time.Second), request); err != nil {
				t.Fatal(err)
			}
			if c.hangUp {
				<-hungUp
			}
			if err := a.Report(t.Context(), agentapi.Report{ID: request.ID, Outcome: "programmed"}, time.Now().Add(10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if r := <-reports; r.ID != request.ID || r.Outcome != "programmed" || r.connection != c.connection {
				t.Errorf("got %+v, want connection %d", r, c.connection)
			}
		})
	}
}

func TestNobodyWaitsLongForAReport(t *testing.T) {
	long := agentapi.Report{ID: request.ID, Reason: strings.Repeat("x", 4<<20)} // more than a socket takes
	for name, serve := range map[string]func(l *net.UnixListener, conn net.Conn){
		"the agent has died":               func(l *net.UnixListener, conn net.Conn) { l.Close(); conn.Close() },
		"the agent reads nothing any more": func(*net.UnixListener, net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			done := make(chan net.Conn, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_ = json.NewDecoder(conn).Decode(new(agentapi.Request))
				_ = json.NewEncoder(conn).Encode(cached)
				serve(l.(*net.UnixListener), conn)
				done <- conn
			}()
			a := NewAgent(socket, "")
			if _, err := a.Lookup(within(t, 10*time.Second), request); err != nil {
				t.Fatal(err)
			}
			defer (<-done).Close()
			began := time.Now()
			if err := a.Report(t.Context(), long, began.Add(100*time.Millisecond)); !errors.Is(err, agentapi.ErrNobody) {
				t.Errorf("got error %v", err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}
