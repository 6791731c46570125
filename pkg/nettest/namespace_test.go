package nettest

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNamespaceIsVisibleAndVanishes(t *testing.T) {
	t.Parallel()
	RequireNetns(t)
	RequireProgram(t, "ip")
	ns, err := NewNamespace("visible")
	if err != nil {
		t.Fatal(err)
	}
	name, path := ns.Name(), ns.Path()
	if listed := ipNetns(t); !slices.Contains(listed, name) {
		t.Errorf("ip netns doesn't list %s: %q", name, listed)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", path, err)
	}
	if listed := ipNetns(t); slices.Contains(listed, name) {
		t.Errorf("ip netns still lists %s", name)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if err := ns.Do(func() error { return nil }); err == nil {
		t.Error("Do after Close: no error")
	}
}

func ipNetns(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("ip", "netns").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestNewNamespaceRefusesBadNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "a/b", "a b", "a\n", strings.Repeat("a", 65)} {
		if ns, err := NewNamespace(name); err == nil {
			t.Errorf("%q: created %s", name, errors.Join(ns.Close()))
		}
	}
}

func TestSameNameTwice(t *testing.T) {
	t.Parallel()
	if a, b := StartNamespace(t, "same"), StartNamespace(t, "same"); a.Path() == b.Path() {
		t.Errorf("both are at %s", a.Path())
	}
}

// A world whose sockets have been used must be freed by the kernel, not only unlisted: its veths go last.
func TestClosedWorldIsFreed(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	CheckPackets(t, w, parse(t, "out 1.1.1.1:80 -> outside\nin via=net1 8080 -> app\nguest udp 1.1.1.1:53 -> outside\nin udp 53 -> app"))
	for at, listener := range w.listeners {
		if at.ns != w.Pod {
			continue
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Pod.Close(); err != nil {
		t.Fatal(err)
	}
	awaitNoLink(t, w.Outside, outsideEnd)
	awaitNoLink(t, w.Outside, outsideNet1)
	awaitNoLink(t, w.Guest, guestEnd)
}

func awaitNoLink(t *testing.T, ns *Namespace, e end) {
	t.Helper()
	gone := func() error {
		_, err := netlink.LinkByName(e.link)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		return errors.Join(err, errors.New(e.link+" is still there"))
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ns.Do(gone)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	ns := StartNamespace(t, "do")
	before := currentNamespace(t)
	var inside string
	if err := ns.Do(func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	if inside == before {
		t.Errorf("Do stayed in %s", before)
	}
	if after := currentNamespace(t); after != before {
		t.Errorf("Do left the caller in %s, not %s", after, before)
	}
	wanted := errors.New("wanted")
	if err := ns.Do(func() error { return wanted }); !errors.Is(err, wanted) {
		t.Errorf("got error %v", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errLeft) {
		t.Errorf("after Goexit: got error %v", err)
	}
}

func currentNamespace(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// No thread that was in a namespace may serve the rest of the program, and the main thread may never have been there.
func TestThreadsEnd(t *testing.T) {
	ns := StartNamespace(t, "threads")
	own := currentNamespace(t)
	for range 50 {
		if err := ns.Do(func() error {
			if unix.Gettid() == unix.Getpid() {
				return errors.New("on the main thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if main, err := os.Readlink("/proc/self/ns/net"); err != nil || main != own {
		t.Errorf("the main thread is in %s, not %s: %v", main, own, err)
	}
}

func TestLeftovers(t *testing.T) {
	if code := runTests(runner(0), t.Output()); code != 0 {
		t.Errorf("with nothing left behind: got exit code %d", code)
	}
	ns := StartNamespace(t, "left")
	left, err := Leftovers()
	if err != nil || !slices.Contains(left, ns.Name()) {
		t.Errorf("got %q, %v; want %s in it", left, err, ns.Name())
	}
	var stderr strings.Builder
	if code := runTests(runner(0), &stderr); code != 1 || !strings.Contains(stderr.String(), ns.Name()) {
		t.Errorf("with a namespace left behind: got exit code %d and %q", code, stderr.String())
	}
	if code := runTests(runner(2), &stderr); code != 2 {
		t.Errorf("with a namespace left behind after failed tests: got exit code %d", code)
	}
}

// runner stands for a package's tests and their exit code.
type runner int

func (r runner) Run() int { return int(r) }
