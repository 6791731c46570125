package netns_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func open(t *testing.T, ns *nettest.Namespace) *netns.Pod {
	t.Helper()
	pod, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close() })
	return pod
}

func TestOpenRefusesTheHostAndWhatIsNoNetworkNamespace(t *testing.T) {
	for path, want := range map[string]error{
		"/proc/self/ns/net": netns.ErrHost,
		"/proc/self/ns/uts": netns.ErrGone,
		"/dev/null":         netns.ErrGone,
		"/nowhere":          netns.ErrGone,
		t.TempDir():         netns.ErrGone,
	} {
		if _, err := netns.Open(path); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
	}
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "pod")
	here := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	outside := here()
	var inside, child string
	wrong := errors.New("wrong")
	err := open(t, ns).Do(func() error {
		inside = here()
		out, err := exec.Command("readlink", "/proc/self/ns/net").Output()
		child = strings.TrimSpace(string(out))
		return errors.Join(wrong, err)
	})
	if !errors.Is(err, wrong) {
		t.Errorf("got error %v", err)
	}
	if inside == outside || child != inside || here() != outside {
		t.Errorf("outside %s, inside %s, its child %s, afterwards %s", outside, inside, child, here())
	}
}

func TestLockIsTheNamespacesOwn(t *testing.T) {
	t.Parallel()
	one, other := nettest.StartNamespace(t, "one"), nettest.StartNamespace(t, "other")
	dir, holder := t.TempDir(), open(t, one)
	for _, pod := range []*netns.Pod{holder, open(t, other)} {
		if _, err := pod.Lock(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	second := open(t, one)
	if _, err := second.Lock(ctx, dir); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another detour") {
		t.Errorf("got error %v while another holds the lock", err)
	}
	holder.Close()
	if _, err := second.Lock(t.Context(), dir); err != nil {
		t.Errorf("the lock is not given back: %v", err)
	}
}

func TestAProgramThatInheritedTheLockKeepsIt(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "pod")
	dir, killed := t.TempDir(), open(t, ns)
	lock, err := killed.Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{lock}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	killed.Close()

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	next := open(t, ns)
	if _, err := next.Lock(ctx, dir); err == nil {
		t.Error("the lock was given back although a program still holds it")
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := next.Lock(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

func locks(t *testing.T, dir string) []string {
	t.Helper()
	ids, err := netns.Locks(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestTheLockIsForRootOnly(t *testing.T) {
	t.Parallel()
	dir, pod := t.TempDir(), open(t, nettest.StartNamespace(t, "pod"))
	lock, err := pod.Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{filepath.Dir(lock.Name()): 0o700, lock.Name(): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// A file that is removed under its lock guards nothing any more: who waited for it must not take it for the namespace's.
func TestALockThatIsRemovedIsTakenAnew(t *testing.T) {
	t.Parallel()
	ns, dir := nettest.StartNamespace(t, "pod"), t.TempDir()
	var holders atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				pod, err := netns.Open(ns.Path())
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := pod.Lock(t.Context(), dir); err != nil {
					t.Error(err)
				} else if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				err = pod.Forget()
				pod.Close()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if ids := locks(t, dir); len(ids) > 0 {
		t.Errorf("left: %q", ids)
	}
}

func TestTheLockOfANamespaceThatIsGoneIsRemovedUnlessItIsHeld(t *testing.T) {
	t.Parallel()
	dir, pod := t.TempDir(), open(t, nettest.StartNamespace(t, "pod"))
	if err := netns.Forget(dir, "4-1"); err != nil || len(locks(t, dir)) > 0 {
		t.Errorf("there is none: %v, %q", err, locks(t, dir))
	}
	id, err := pod.ID()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Lock(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := netns.Forget(dir, id); err != nil || len(locks(t, dir)) != 1 {
		t.Errorf("while it is held: %v, %q", err, locks(t, dir))
	}
	pod.Close()
	forgetOnceFree(t, dir, id)
}

// forgetOnceFree calls Forget until it has removed the lock: a child that another test is starting holds the lock until it executes its
// program.
func forgetOnceFree(t *testing.T, dir, id string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if err := netns.Forget(dir, id); err != nil {
			t.Fatal(err)
		}
		if len(locks(t, dir)) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody holds the lock, but Forget leaves %q", locks(t, dir))
		}
	}
}
