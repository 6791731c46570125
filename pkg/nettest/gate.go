package nettest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// TB is what this package needs of a testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// requireVar set to 1, as in CI, makes a missing privilege or program a failure: a skipped test proves nothing there.
const requireVar = "REQUIRE_NETNS"

// hostVar describes what the result depends on besides Go files; see scripts/test.sh. The cache of go test keeps a result
// while the variables that the tests have read stay as they are.
const hostVar = "DETOUR_TEST_HOST"

// RequireNetns skips the test with the reason if this process can't create network namespaces, and fails it instead if
// the environment says REQUIRE_NETNS=1.
func RequireNetns(t TB) {
	t.Helper()
	Require(t, tryNamespace())
}

// RequireProgram skips the test if a program isn't in PATH, and fails it instead if the environment says
// REQUIRE_NETNS=1.
func RequireProgram(t TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	Require(t, err)
}

// Require skips the test if there is an error, and fails it instead if the environment says REQUIRE_NETNS=1.
func Require(t TB, err error) {
	t.Helper()
	os.Getenv(hostVar)
	switch {
	case err == nil:
	case os.Getenv(requireVar) == "1":
		t.Fatalf("%s=1, but: %v", requireVar, err)
	default:
		t.Skipf("skipped: %v", err)
	}
}

func tryNamespace() error {
	ns, err := NewNamespace("try")
	if err != nil {
		return err
	}
	return ns.Close()
}

// StartNamespace is NewNamespace behind RequireNetns for a test, which closes it.
func StartNamespace(t TB, name string) *Namespace {
	t.Helper()
	RequireNetns(t)
	ns, err := NewNamespace(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { closeOrFail(t, ns) })
	return ns
}

// StartWorld is NewWorld behind RequireNetns for a test, which closes it.
func StartWorld(t TB) *World {
	t.Helper()
	RequireNetns(t)
	w, err := NewWorld()
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { closeOrFail(t, w) })
	return w
}

func closeOrFail(t TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("%v", err)
	}
}

// CheckPackets serves the packets, sends each and fails the test for those that don't end where they want to.
func CheckPackets(t TB, w *World, packets []Packet, proxyPorts ...uint16) {
	t.Helper()
	if err := w.Serve(packets, proxyPorts...); err != nil {
		t.Fatalf("%v", err)
	}
	for _, p := range packets {
		got, err := w.Send(p)
		if err != nil {
			t.Fatalf("send %q: %v", p, err)
		}
		if got != p.Want.String() {
			t.Errorf("%s: got %s", p, got)
		}
	}
}

// Main runs a package's tests and returns the exit code for TestMain: that of m, or 1 if tests left namespaces behind.
func Main(m interface{ Run() int }) int {
	if err := becomeDenied(); err != nil {
		fmt.Fprintf(os.Stderr, "nettest: %v\n", err)
		return 1
	}
	return runTests(m, os.Stderr)
}

func runTests(m interface{ Run() int }, stderr io.Writer) int {
	code := m.Run()
	left, err := Leftovers()
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	err = errors.Join(err, removePrograms())
	if err == nil {
		return code
	}
	fmt.Fprintf(stderr, "nettest: %v\n", err)
	return max(code, 1)
}

// StartMounts is NewMounts behind RequireNetns for a test, which closes it.
func StartMounts(t TB, script string, args ...string) *Mounts {
	t.Helper()
	RequireNetns(t)
	m, err := NewMounts(script, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { closeOrFail(t, m) })
	return m
}
