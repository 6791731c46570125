package cniplugin_test

import (
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/faults"
)

// next is what a runtime does after a kill.
type next struct {
	name string
	do   func(s *struck)
	end  func(s *struck) string // says what is wrong then
	saw  string                 // what a prober may see from the kill to the end, as a regular expression; if empty, none probes
}

// stage is a verb that is killed.
type stage struct {
	name, verb string
	before     func(s *struck)
	// states are between which each part of the namespace changes at once.
	states func(s *struck) []held
	next   []next
}

var stages = []stage{
	{
		"ADD", "ADD", func(*struck) {}, func(s *struck) []held { return []held{s.bare, s.full} },
		[]next{
			{"ADD", add, isFull, "(Ux?)?R"},
			{"DEL, ADD of a new container", addNew, isFull, ""},
			{"DEL", del, isBare, ""},
			{"GC, DEL", gcDel, isBare, ""},
		},
	},
	{
		"ADD that decides otherwise", "ADD",
		func(s *struck) { s.must("ADD"); s.redecide() }, func(s *struck) []held { return []held{s.full, s.other} },
		[]next{
			{"ADD", add, isOther, "R"},
			{"DEL", del, isBare, ""},
			{"GC, DEL", gcDel, isBare, ""},
		},
	},
	{
		"DEL", "DEL", add, func(s *struck) []held { return []held{s.full, s.bare} },
		[]next{
			{"DEL", del, isBare, ""},
			{"GC, DEL", gcDel, isBare, ""},
			{"ADD", add, isFull, ""},
		},
	},
	{
		"DEL without a record", "DEL",
		func(s *struck) { s.must("ADD"); s.loseState() }, func(s *struck) []held { return []held{s.full, s.bare} },
		[]next{{"DEL", del, isBare, ""}},
	},
	{
		"GC", "GC",
		func(s *struck) { s.must("ADD"); s.leave("gone"); s.valid("c1") }, func(s *struck) []held { return []held{s.full} },
		[]next{
			{"GC", func(s *struck) { s.must("GC") }, onlyFull, "R"},
			{"GC that finds nothing valid, DEL", gcDel, isBare, ""},
		},
	},
}

func add(s *struck) { s.must("ADD") }

func del(s *struck) { s.must("DEL") }

func gcDel(s *struck) {
	s.valid()
	s.must("GC")
	if got := s.records(); len(got) > 0 {
		s.t.Errorf("GC leaves records %q", got)
	}
	s.must("DEL")
}

func addNew(s *struck) {
	s.must("DEL")
	s.env["CNI_CONTAINERID"] = "c2"
	s.must("ADD")
}

func isFull(s *struck) string { return s.is(s.full, s.fullRecord) }

func isOther(s *struck) string { return s.is(s.other, s.otherRecord) }

func isBare(s *struck) string { return s.nothingLeft() }

func onlyFull(s *struck) string {
	if got := s.records(); len(got) != 1 {
		return "there are records " + strings.Join(got, ", ")
	}
	return isFull(s)
}

func (s *struck) is(want held, record string) string {
	if got := s.look(); !maps.Equal(got, want) {
		return "the namespace is not as without a kill: " + got.whole(want)
	}
	if got := s.recorded(); got != record {
		return "the record is " + got + ", not " + record
	}
	return ""
}

func (s *struck) loseState() {
	if err := os.RemoveAll(s.path("state")); err != nil {
		s.t.Fatal(err)
	}
}

// leave makes what an attachment of this ID leaves whose namespace is gone, half a record included.
func (s *struck) leave(id string) {
	s.file("state/attachments/net/"+id+"@eth0.json", `{"network": "net", "containerID": "`+id+`", "ifName": "eth0", "outcome": "programmed", "namespaceID": "9-9"}`)
	s.file("state/attachments/net/"+id+"@eth0.json.tmp", "{")
	s.file("state/namespaces/9-9", "")
}

// valid has GC take the attachments of these containers for valid.
func (s *struck) valid(ids ...string) {
	valid := []any{}
	for _, id := range ids {
		valid = append(valid, map[string]any{"containerID": id, "ifname": "eth0"})
	}
	s.conf["cni.dev/valid-attachments"] = valid
}

// acts are the calls of a child by which something happens outside.
var acts = map[string]bool{"execve": true, "sendmsg": true, "sendto": true, "setsockopt": true}

// childStride is how many rounds it takes for each call of a child by which nothing happens outside. Most load libraries.
const childStride = 4

// chosen reports whether a call is to be struck, from call n on.
func chosen(c faults.Call, n, round int) bool {
	return c.N >= n && (!c.Child || acts[c.Name] || (c.N+round)%childStride == 0)
}

// victims are whom a kill meets, in turn.
var victims = []faults.Victim{faults.Program, faults.Caller, faults.All}

// kill kills the stage's verb before a call, call n or the first one after it that is chosen, and does what is next. Round by round
// it takes another victim and another next step. It returns the call, nil if there is none.
func (s *struck) kill(t *testing.T, g stage, n, round int) *faults.Call {
	t.Helper()
	s.t = t
	victim, next := victims[(n+round)%len(victims)], g.next[(n+round/len(victims))%len(g.next)]
	s.env["CNI_CONTAINERID"] = "c1"
	s.decideAsFirst()
	g.before(s)
	dead := false
	var p *prober
	if next.saw != "" {
		p = s.probe()
	}
	r, _, _ := s.faulted(g.verb, func(c faults.Call) faults.Action {
		if dead || !chosen(c, n, round) {
			return faults.Action{}
		}
		dead = true
		return faults.Kill(victim)
	})
	if r.Struck == nil {
		if p != nil {
			p.end("")
		}
		s.clear()
		return nil
	}
	what := victim.String() + " killed before " + r.Struck.String()
	if r.Wait() {
		t.Errorf("%s: processes are left", what)
	}
	between, states, saw := s.look(), g.states(s), next.saw
	if victim == faults.Caller && r.Struck.Child { // the plugin lives, fails and undoes
		states, saw = append(states, s.bare), "("+saw+")|(Ux?)?(Rx?Ux?)?R"
	}
	if half := between.whole(states...); half != "" {
		t.Errorf("%s: %s", what, half)
	}
	if g.name != "DEL without a record" && !maps.Equal(between, s.bare) && len(s.records()) == 0 {
		t.Errorf("%s: the namespace has rules and no record", what)
	}
	next.do(s)
	if wrong := next.end(s); wrong != "" {
		t.Errorf("%s, then %s: %s", what, next.name, wrong)
	}
	if p != nil {
		if wrong := p.end(saw); wrong != "" {
			t.Errorf("%s, then %s: %s", what, next.name, wrong)
		}
	}
	s.clear()
	return r.Struck
}

// clear makes the namespace bare again.
func (s *struck) clear() {
	s.t.Helper()
	s.valid()
	defer func() { // iptables-nft leaves its tables; the next ADD is to meet a namespace without
		if s.env["PATH"] != "" {
			s.shell("nft flush ruleset")
		}
	}()
	for _, verb := range []string{"DEL", "GC"} { // GC is for a DEL that did not say that it is not done
		if s.nothingLeft() == "" {
			return
		}
		s.must(verb)
	}
	if wrong := s.nothingLeft(); wrong != "" {
		s.t.Fatalf("after the last DEL and GC: %s", wrong)
	}
}

// A part of what `make faults` does: one backend, and every seventh call of ADD.
func TestAnAddThatIsKilledAtACallIsMended(t *testing.T) {
	t.Parallel()
	s := newStruck(t, host{"nftables", "agent"})
	for call := (&faults.Call{}); call != nil; {
		call = s.kill(t, stages[0], call.N+7, 0)
	}
}
