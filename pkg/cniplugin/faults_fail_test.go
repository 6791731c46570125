//go:build faults

package cniplugin_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/faults"
)

// failing is a verb one call of which fails.
type failing struct {
	verb   string
	before func(s *struck)
	// end says what is wrong after it; err is nil if the verb succeeded.
	end func(s *struck, err *types.Error) string
}

var failings = []failing{
	{"ADD", func(*struck) {}, func(s *struck, err *types.Error) string {
		if err == nil {
			return isFull(s)
		}
		if got, left := s.look(), s.records(); !maps.Equal(got, s.bare) || len(left) > 0 { // a lock may be left, for DEL
			return fmt.Sprintf("the namespace has %q, with records %q", got, left)
		}
		return ""
	}},
	{"DEL", add, func(s *struck, err *types.Error) string {
		if lines := s.logged(); err != nil || len(lines) > 0 && lines[len(lines)-1]["event"] == "del-incomplete" {
			return ""
		}
		return s.nothingLeft()
	}},
	{"CHECK", add, func(s *struck, _ *types.Error) string { return isFull(s) }},
	{"CHECK", func(s *struck) { s.must("ADD"); s.redecide(); s.must("ADD"); s.decideAsFirst(); s.swapRecord() }, func(_ *struck, err *types.Error) string {
		if err == nil {
			return "CHECK does not see that the rules are others"
		}
		return ""
	}},
	{"GC", func(s *struck) { s.must("ADD"); s.leave("gone"); s.valid("c1") }, func(s *struck, err *types.Error) string {
		if err == nil {
			return onlyFull(s)
		}
		return isFull(s)
	}},
}

var panics = regexp.MustCompile(`panic|goroutine \d|fatal error|SIG[A-Z]+`)

// fail runs a verb one call of which fails: call n, or the first one after it that is chosen and has errnos, with its errno number
// k. It returns the call, nil if there is none, and how many errnos it has.
func (s *struck) fail(t *testing.T, f failing, n, k, round int) (*faults.Call, int) {
	t.Helper()
	s.t = t
	s.decideAsFirst()
	f.before(s)
	var errno unix.Errno
	plausible := 0
	r, stdout, stderr := s.faulted(f.verb, func(c faults.Call) faults.Action {
		all := errnosOf(c)
		if plausible > 0 || len(all) == 0 || !chosen(c, n, round) {
			return faults.Action{}
		}
		plausible = len(all)
		errno = all[k%plausible]
		return faults.Errno(errno)
	})
	left := r.Wait()
	if r.Struck != nil {
		what := fmt.Sprintf("%s: %s fails: %s", f.verb, r.Struck, unix.ErrnoName(errno))
		switch {
		case r.Hung || left:
			t.Errorf("%s: it hangs", what)
		case panics.MatchString(stderr):
			t.Errorf("%s: %s", what, stderr)
		default:
			err, wrong := said(r, stdout)
			if errno == unix.EINTR && err != nil && err.Code != agentapi.CodeDifferent && !r.Struck.Child {
				wrong = "it is not tried again"
			}
			if wrong == "" && err != unsaid {
				wrong = f.end(s, err)
			}
			if wrong != "" {
				t.Errorf("%s: %s (stdout: %s)", what, wrong, stdout)
			}
		}
	}
	s.clear()
	return r.Struck, plausible
}

// unsaid is the error of an ADD that can't print its result: it is done, and stays so until DEL.
var unsaid = &types.Error{}

// said is the CNI error on stdout, nil if there is none. It says what is wrong about it.
func said(r faults.Result, stdout string) (cniErr *types.Error, wrong string) {
	if r.Err == nil {
		return nil, ""
	}
	var e types.Error
	isError := json.Unmarshal([]byte(stdout), &e) == nil && e.Msg != ""
	if stdout == "" || strings.HasPrefix(e.Msg, "write /dev/stdout") {
		return unsaid, ""
	}
	if !isError {
		return nil, fmt.Sprintf("%v without a CNI error", r.Err)
	}
	if words := strings.Fields(e.Msg); len(words) < 4 {
		return &e, "the message names no operation"
	}
	return &e, ""
}

// swapRecord has the record say what the first decision's does.
func (s *struck) swapRecord() {
	r := map[string]any{}
	if err := json.Unmarshal([]byte(s.fullRecord), &r); err != nil {
		s.t.Fatal(err)
	}
	full := s.record()
	maps.Copy(full, r)
	data, _ := json.Marshal(full)
	s.file(s.recordName(), string(data))
}
