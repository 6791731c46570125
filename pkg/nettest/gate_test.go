package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childVar makes TestGateChild do its work: it is for the process that TestRequireNetnsWithoutPrivilege starts.
const childVar = "NETTEST_GATE_CHILD"

func TestRequireNetnsWithoutPrivilege(t *testing.T) {
	t.Parallel()
	RequireNetns(t)
	for _, c := range []struct{ required, want string }{
		{"", "--- SKIP: TestGateChild"},
		{"0", "--- SKIP: TestGateChild"},
		{"1", "--- FAIL: TestGateChild"},
	} {
		out := runUnprivileged(t, c.required)
		if !strings.Contains(out, c.want) || !strings.Contains(out, "operation not permitted") {
			t.Errorf("%s=%s: want %q and the reason in:\n%s", requireVar, c.required, c.want, out)
		}
	}
}

// runUnprivileged runs TestGateChild in a process that can never have CAP_SYS_ADMIN and returns its output.
func runUnprivileged(t *testing.T, required string) string {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestGateChild$", "-test.v")
	child.Env = append(os.Environ(), childVar+"=1", requireVar+"="+required)
	var out []byte
	err := onOwnThread(func() error {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			return fmt.Errorf("drop CAP_SYS_ADMIN: %w", err)
		}
		out, _ = child.CombinedOutput() // its exit code is told by its output
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestGateChild(t *testing.T) {
	if os.Getenv(childVar) != "1" {
		t.Skip("run by TestRequireNetnsWithoutPrivilege")
	}
	RequireNetns(t)
}

func TestRequireProgram(t *testing.T) {
	for _, c := range []struct{ name, required, program, want string }{
		{"present", "1", "sh", "passed"},
		{"missing", "", "no-such-program", `skipped: exec: "no-such-program": executable file not found in $PATH`},
		{"missing and required", "1", "no-such-program", `failed: REQUIRE_NETNS=1, but: exec: "no-such-program": executable file not found in $PATH`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(requireVar, c.required)
			if got := outcomeOf(func(t TB) { RequireProgram(t, c.program) }); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// CheckPackets is a checker: it must fail where a packet goes astray, whatever kind it is of.
func TestCheckPacketsFails(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	w.Silence = Patience // what is to go astray here arrives
	for line, got := range map[string]string{
		"out 1.1.1.1:80 -> proxy 15001":                  "outside",
		"out 1.1.1.1:80 gid=1337 -> app":                 "outside",
		"out 10.77.0.2:80 src=127.0.0.6 -> proxy 15006":  "app",
		"out 192.0.2.9:80 -> proxy 15001":                "outside",
		"out [2001:db8:78::9]:80 -> error: timeout":      "outside",
		"out udp 10.96.0.10:53 -> proxy 15053":           "outside",
		"out udp [2001:db8::1]:53 -> error: timeout":     "outside",
		"out udp 10.77.0.2:53 -> outside":                "app",
		"in udp 53 -> error: refused":                    "app",
		"in via=net1 8080 -> proxy 15006":                "app",
		"in6 via=net1 8080 -> error: timeout":            "app",
		"guest 1.1.1.1:80 -> proxy 15001":                "outside",
		"guest udp [2001:db8::1]:53 -> error: refused":   "outside",
		"guest [fd77::2]:80 -> outside":                  "app",
		"out 127.0.0.1:15001 -> proxy 15001":             "proxy 15001 original unknown",
		"out udp 10.77.0.2:15053 uid=0 gid=0 -> outside": "proxy 15053",
		"guest 10.79.0.1:80 -> error: timeout":           "app",
		"out udp [fd79::1]:80 -> error: unreachable":     "app",
	} {
		packets := parse(t, line)
		want := fmt.Sprintf("failed: %s: got %s", line, got)
		if got := outcomeOf(func(t TB) { CheckPackets(t, w, packets, 15053) }); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// outcomeOf runs test with a TB of its own, and tells what became of it.
func outcomeOf(test func(TB)) string {
	t := &fakeTB{outcome: "passed"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(t)
	}()
	<-done
	return t.outcome
}

// fakeTB is a test whose failure fails nothing.
type fakeTB struct{ outcome string }

func (t *fakeTB) Helper()                   {}
func (t *fakeTB) Cleanup(func())            {}
func (t *fakeTB) Errorf(f string, a ...any) { t.outcome = "failed: " + fmt.Sprintf(f, a...) }

func (t *fakeTB) Fatalf(f string, a ...any) {
	t.Errorf(f, a...)
	runtime.Goexit()
}

func (t *fakeTB) Skipf(f string, a ...any) {
	t.outcome = fmt.Sprintf(f, a...)
	runtime.Goexit()
}
