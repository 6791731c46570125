//go:build kubeapi

package apitest

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
)

// end is what an ADD comes to: rules with these excluded ports, or an error.
type end struct {
	rules string
	code  uint
	words []string
}

func rules(excluded string) end { return end{rules: excluded} }

func fails(code uint, words ...string) end { return end{code: code, words: words} }

var guide = rules(guideExclusions)

// faults are what may be wrong with the API server, the agent and the objects. What an ADD comes to is the same by all ways, unless
// known says what it is if the agent knows the pod. Once the fault is gone, every ADD has to come to mended, with nothing restarted.
var faults = []struct {
	name    string
	ways    []way
	early   bool // before the agent starts
	long    bool // it takes minutes: only with LONG_FAULTS=1
	timeout string
	fault   func(*faultScene)
	want    end
	known   end
	mend    func(*faultScene)
	mended  end
}{
	{
		name: "it takes 3 s to answer", ways: []way{direct, live, cached},
		fault: answering(slow(3 * time.Second)), want: guide,
	},
	{
		name: "it takes too long to answer", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(slow(time.Hour)), want: fails(types.ErrTryAgainLater, "no answer from https://127.0.0.1:", "no complete answer came"), known: guide,
	},
	{
		name: "it is there every other second", ways: []way{direct, live, cached},
		fault: (*faultScene).flap, want: guide,
	},
	{
		name: "429, come back in a second, twice", ways: []way{direct, live, cached},
		fault: answering(first(2, status(429, "TooManyRequests", "1"))), want: guide,
	},
	{
		name: "429, come back in a minute", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(status(429, "TooManyRequests", "60")), want: fails(types.ErrTryAgainLater, "429 Too Many Requests"), known: guide,
	},
	{
		name: "503", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(status(503, "ServiceUnavailable", "")), want: fails(types.ErrTryAgainLater, "503 Service Unavailable"), known: guide,
	},
	{
		name: "its certificate expired a day ago, or the node's clock is ahead by as much", ways: []way{direct, live, cached}, timeout: "6s",
		fault: func(s *faultScene) { s.certify(-48*time.Hour, -24*time.Hour) }, mend: func(s *faultScene) { s.certify(-time.Hour, time.Hour) },
		want: fails(0, "no trusted connection", "certificate has expired", "is this node's clock right?"), known: guide,
	},
	{
		name: "its certificate holds from tomorrow, or the node's clock is behind by as much", ways: []way{direct, live, cached}, timeout: "6s",
		fault: func(s *faultScene) { s.certify(24*time.Hour, 48*time.Hour) }, mend: func(s *faultScene) { s.certify(-time.Hour, time.Hour) },
		want: fails(0, "no trusted connection", "is not yet valid", "is this node's clock right?"), known: guide,
	},
	{
		name: "the token expired", ways: []way{direct, live}, early: true, timeout: "6s",
		fault: func(s *faultScene) { s.good = s.token; s.setToken(expiredToken(s.t, s.token)) }, mend: func(s *faultScene) { s.setToken(s.good) },
		want: fails(0, "401 Unauthorized", "is not accepted"),
	},
	{
		name: "an answer of 10 MB", ways: []way{direct, live, cached},
		fault: answering(bloated), want: fails(0, "the answer is larger than 4 MiB"), known: guide,
	},
	{
		name: "an answer that never ends", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(trickle), want: fails(types.ErrTryAgainLater, "connected, but no complete answer came"), known: guide,
	},
	{
		name: "answers are cut in the middle, twice", ways: []way{direct, live, cached},
		fault: answering(first(2, half(true))), want: guide,
	},
	{
		name: "answers are cut in the middle", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(half(true)), want: fails(types.ErrTryAgainLater, "no answer from https://127.0.0.1:", "read the answer"), known: guide,
	},
	{
		name: "half answers look whole, twice", ways: []way{direct, live, cached},
		fault: answering(first(2, half(false))), want: guide,
	},
	{
		name: "half answers look whole", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(half(false)), want: fails(types.ErrTryAgainLater, "no answer from https://127.0.0.1:", "is not the JSON of an object"), known: guide,
	},
	{
		name: "a page for browsers", ways: []way{direct, live, cached}, timeout: "6s",
		fault: answering(page), want: fails(types.ErrTryAgainLater, "is not the JSON of an object"), known: guide,
	},
	{
		name: "watches go silent, and the pod is replaced", ways: []way{cached, fallback},
		fault: func(s *faultScene) { s.silence.set(true); s.replacePod("8081") }, mend: func(s *faultScene) { s.silence.set(false); s.api.cut() },
		want: rules("6379,7070,8081"), mended: rules("6379,7070,8081"),
	},
	{
		name: "watches go silent, the pod is replaced, and the runtime passes no UID", ways: []way{cached, fallback},
		fault: func(s *faultScene) {
			s.silence.set(true)
			s.replacePod("8081")
			s.args, _, _ = strings.Cut(s.args, ";K8S_POD_UID")
		},
		mend: func(s *faultScene) { s.silence.set(false); s.api.cut() },
		want: rules("6379,7070,8081"), mended: rules("6379,7070,8081"),
	},
	{
		name: "packets of open connections vanish, and nobody says so", ways: []way{live, cached, fallback},
		fault: (*faultScene).dropConnections, mend: func(*faultScene) {}, want: guide,
	},
	{ // known within 45 s
		name: "packets of open connections vanish, and the configuration is replaced", ways: []way{cached},
		fault: func(s *faultScene) { s.dropConnections(); s.replaceConfig() }, mend: func(*faultScene) {},
		want: guide, mended: rules("6379,7071,8080"),
	},
	{ // known within 3 minutes
		name: "watches go silent, and the configuration is replaced", ways: []way{cached}, long: true,
		fault: func(s *faultScene) { s.silence.set(true); s.replaceConfig() }, mend: func(*faultScene) {},
		want: guide, mended: rules("6379,7071,8080"),
	},
	{
		name: "packets of open connections vanish, and pod and configuration are replaced", ways: []way{live, cached},
		fault: func(s *faultScene) { s.dropConnections(); s.replacePod("8081"); s.replaceConfig() }, mend: func(*faultScene) {},
		want: rules("6379,7071,8081"), mended: rules("6379,7071,8081"),
	},
	{
		name: "every version is too old, and pod and configuration are replaced", ways: []way{cached, live},
		fault: func(s *faultScene) {
			s.api.set(expired)
			s.api.cut()
			s.replacePod("8081")
			s.replaceConfig()
		},
		want: rules("6379,7071,8081"), mended: rules("6379,7071,8081"),
	},
	{
		name: "the agent is dead", ways: []way{cached}, timeout: "6s",
		fault: (*faultScene).stopAgent, mend: (*faultScene).startAgent, want: fails(types.ErrTryAgainLater, "is detour-agent running on this node?"),
	},
	{
		name: "the agent is dead, and the API server is behind it", ways: []way{fallback},
		fault: (*faultScene).stopAgent, mend: (*faultScene).startAgent, want: guide,
	},
	{
		name: "the agent hangs", ways: []way{cached}, timeout: "6s",
		fault: signals(syscall.SIGSTOP), mend: signals(syscall.SIGCONT), want: fails(types.ErrTryAgainLater, "is detour-agent running on this node?"),
	},
	{
		name: "the agent hangs, and the API server is behind it", ways: []way{fallback},
		fault: signals(syscall.SIGSTOP), mend: signals(syscall.SIGCONT), want: guide,
	},
	{
		name: "the agent hung while pod and configuration were replaced", ways: []way{cached, fallback},
		fault: func(s *faultScene) {
			s.signal(syscall.SIGSTOP)
			s.replacePod("8081")
			s.replaceConfig()
			s.signal(syscall.SIGCONT)
		},
		want: rules("6379,7071,8081"), mended: rules("6379,7071,8081"),
	},
	{
		name: "the agent is killed again and again, a second after it is there", ways: []way{cached, fallback},
		fault: (*faultScene).restartAgent, want: guide,
	},
	{
		name: "the runtime starts a pod that was replaced under its name", ways: []way{direct, live, cached, fallback}, timeout: "6s",
		fault: func(s *faultScene) { old := s.args; s.replacePod("8081"); s.args, s.young = old, s.args },
		want:  fails(agentapi.CodeRefused, "the pod was replaced"),
		mend:  func(s *faultScene) { s.args = s.young }, mended: rules("6379,7070,8081"),
	},
	{
		name: "the MeshConfig is deleted and made anew", ways: []way{direct, live},
		fault: func(s *faultScene) { s.replaceConfig() }, want: rules("6379,7071,8080"), mended: rules("6379,7071,8080"),
	},
	{
		name: "the MeshConfig is deleted and made anew under an agent that has it", ways: []way{cached, fallback},
		fault: func(*faultScene) {}, want: guide,
		mend: func(s *faultScene) { s.replaceConfig() }, mended: rules("6379,7071,8080"),
	},
	{
		name: "the namespace's labels change", ways: []way{direct, live, cached},
		fault: func(s *faultScene) {
			s.create(fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {openservicemesh.io/monitored-by: nobody}}}", s.namespace))
		},
		want: guide,
	},
}

// answering makes the fault that of all requests for objects.
func answering(f fault) func(*faultScene) {
	return func(s *faultScene) { s.api.set(ofObjects(f)) }
}

func signals(signal syscall.Signal) func(*faultScene) {
	return func(s *faultScene) { s.signal(signal) }
}

// certify gives the API server a certificate for that time from now on, which open connections don't show.
func (s *faultScene) certify(from, until time.Duration) {
	s.api.certify(s.t, time.Now().Add(from), time.Now().Add(until))
	s.api.cut()
}

// flap takes the API server up and down until the fault is mended.
func (s *faultScene) flap() {
	s.repeat(func() {
		s.api.setDown(true)
		time.Sleep(time.Second)
		s.api.setDown(false)
		time.Sleep(time.Second)
	})
}

func (s *faultScene) restartAgent() {
	s.repeat(func() {
		s.stopAgent()
		s.startAgent()
		for deadline := time.Now().Add(startTime); time.Now().Before(deadline); time.Sleep(pollTime) {
			if conn, err := net.Dial("unix", s.socket()); err == nil {
				conn.Close()
				break
			}
		}
		time.Sleep(time.Second)
	})
}

// repeat does it again and again until the fault is mended.
func (s *faultScene) repeat(do func()) {
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			select {
			case <-ended:
				return
			default:
				do()
			}
		}
	})
	s.stop = sync.OnceFunc(func() { close(ended); running.Wait() })
	s.t.Cleanup(s.stop)
}

// An ADD under a fault gives the rules of the objects as the API server has them, or an error that names the fault, before its
// deadline; and once the fault is gone, it gives the rules.
func TestAddUnderFaults(t *testing.T) {
	t.Parallel()
	serveMeshConfigs(t)
	for _, tt := range faults {
		for _, w := range tt.ways {
			t.Run(tt.name+"/"+w.title, func(t *testing.T) {
				t.Parallel()
				if tt.long && os.Getenv("LONG_FAULTS") == "" {
					t.Skip("LONG_FAULTS is not set")
				}
				s := newFaultScene(t, w)
				s.t.Cleanup(s.stopAgent)
				if tt.timeout != "" {
					s.conf["timeout"] = tt.timeout
				}
				s.api.set(s.silence.serve)
				if tt.early {
					tt.fault(s)
				}
				if w.agent {
					s.startAgent()
				}
				if w.agent && !tt.early {
					s.awaitAgent()
				}
				if !tt.early {
					tt.fault(s)
				}
				want := tt.want
				if w.known && tt.known.rules != "" {
					want = tt.known
				}
				s.wantEnd(want)

				s.stop()
				s.api.set(nil)
				if tt.mend != nil {
					tt.mend(s)
				}
				mended := tt.mended
				if mended.rules == "" {
					mended = guide
				}
				s.wantMended(mended)
			})
		}
	}
}

// mendTime is longer than anything takes until it is noticed.
const mendTime = 6 * time.Minute

// deadline is how long an ADD may take, and a busy machine more.
const deadline = 10*time.Second + 20*time.Second

// add calls ADD, and once more if time ran out with another error than the fault's: the machine may be busy.
func (s *faultScene) add(want end) (got outcome) {
	s.t.Helper()
	for range 2 {
		begin := time.Now()
		got = s.call("ADD")
		took := time.Since(begin)
		s.t.Logf("%.1fs: code %d %s", took.Seconds(), got.Code, got.Msg)
		if took > deadline {
			s.t.Errorf("it took %s", took)
		}
		if got.Code != types.ErrTryAgainLater || want.rules == "" && want.saidBy(got) {
			break
		}
	}
	return got
}

func (e end) saidBy(got outcome) bool {
	return got.Code != 0 && (e.code == 0 || got.Code == e.code) &&
		!slices.ContainsFunc(e.words, func(w string) bool { return !strings.Contains(got.Msg, w) })
}

func (s *faultScene) wantEnd(want end) {
	s.t.Helper()
	got := s.add(want)
	if want.rules != "" {
		if has, ok := s.hasRules(want.rules); got.Code != 0 || !ok {
			s.t.Errorf("want rules with %s; code %d %s; the pod has\n%s%s", want.rules, got.Code, got.Msg, has, s.logs.String())
		}
		return
	}
	if !want.saidBy(got) {
		s.t.Errorf("want code %d, %q; code %d %s", want.code, want.words, got.Code, got.Msg)
	}
	for _, p := range programs {
		if left := s.rules(p.program); len(left) > 0 {
			s.t.Errorf("%s -S has\n%s\nwant nothing", p.program, strings.Join(left, "\n"))
		}
	}
}

// wantMended calls ADD, as a runtime does for a new sandbox, until it gives the rules.
func (s *faultScene) wantMended(want end) {
	s.t.Helper()
	begin := time.Now()
	var got outcome
	var has string
	for time.Since(begin) < mendTime {
		if got = s.call("ADD"); got.Code == 0 {
			var ok bool
			if has, ok = s.hasRules(want.rules); ok {
				s.t.Logf("mended after %.1fs", time.Since(begin).Seconds())
				return
			}
		}
		time.Sleep(pollTime)
	}
	s.t.Errorf("once the fault is gone: want rules with %s; code %d %s; the pod has\n%s%s", want.rules, got.Code, got.Msg, has, s.logs.String())
}
