package nettest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// runDir is where iproute2 keeps named network namespaces.
const runDir = "/run/netns"

var namespaces atomic.Uint64

// Namespace is a named network namespace that this process created.
type Namespace struct {
	name   string
	handle netns.NsHandle
}

// NewNamespace creates a network namespace with its loopback up. Its full name holds the process's PID, a counter and
// name, so that the same name may be asked for any number of times. `ip netns` shows it. The caller must Close it.
func NewNamespace(name string) (*Namespace, error) {
	if name == "" || len(name) > 64 || strings.ContainsAny(name, "/ \t\n") {
		return nil, fmt.Errorf("create namespace: %q is no name", name)
	}
	ns := &Namespace{name: fmt.Sprintf("%s%d-%s", prefix(), namespaces.Add(1), name)}
	if err := shareRunDir(); err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", ns.name, err)
	}
	if err := onOwnThread(func() error { return bindNewNamespace(ns.Path()) }); err != nil {
		return nil, fmt.Errorf("create namespace %s: %w", ns.name, err)
	}
	if err := ns.prepare(); err != nil {
		return nil, fmt.Errorf("prepare namespace %s: %w", ns.name, errors.Join(err, ns.Close()))
	}
	return ns, nil
}

// prefix begins the name of every namespace of this process.
func prefix() string { return fmt.Sprintf("nettest-%d-", os.Getpid()) }

// shareRunDir makes runDir a shared mount point, as `ip netns add` does: without that, an ip netns add beside us would
// mount runDir over itself, and the file below one of our mounts could then not be removed.
func shareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(runDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// iproute2 takes the same lock for the same purpose; closing dir releases it.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", runDir, err)
	}
	err = unix.Mount("", runDir, "", unix.MS_SHARED|unix.MS_REC, "")
	if !errors.Is(err, unix.EINVAL) {
		return wrap("share "+runDir, err)
	}
	if err := unix.Mount(runDir, runDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", runDir, err)
	}
	return wrap("share "+runDir, unix.Mount("", runDir, "", unix.MS_SHARED|unix.MS_REC, ""))
}

// bindNewNamespace moves the calling thread into a new network namespace and mounts that on a new file at path. On an
// error path is as it was.
func bindNewNamespace(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// prepare opens the handle and brings the loopback up.
func (ns *Namespace) prepare() error {
	handle, err := netns.GetFromPath(ns.Path())
	ns.handle = handle
	if err != nil {
		return fmt.Errorf("open %s: %w", ns.Path(), err)
	}
	return ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return wrap("bring lo up", netlink.LinkSetUp(lo))
	})
}

// Name is the namespace's full name, as `ip netns` wants it.
func (ns *Namespace) Name() string { return ns.name }

// Path is the file at which the namespace is mounted: a value for CNI_NETNS.
func (ns *Namespace) Path() string { return filepath.Join(runDir, ns.name) }

// Do runs fn inside the namespace and returns its error. fn runs in a goroutine of its own, on a thread that ends with
// it: a process that fn starts is in the namespace too and must not have a Pdeathsig, a goroutine that fn starts is not
// in the namespace. Do may be called concurrently. If fn calls t.FailNow, only fn ends: Do returns an error.
func (ns *Namespace) Do(fn func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.name, err)
		}
		return fn()
	})
}

// DoUnprivileged does as Do, but without any capability.
func (ns *Namespace) DoUnprivileged(fn func() error) error {
	return ns.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData // a header of version 3 wants two
		if err := unix.Capset(&header, &none[0]); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
		return fn()
	})
}

// Close removes the namespace's name; the kernel removes the namespace and its links when its last socket and process
// have gone. A second Close does nothing. Close must not run beside Do.
func (ns *Namespace) Close() error {
	if ns.name == "" {
		return nil
	}
	err := netns.DeleteNamed(ns.name)
	if ns.handle.IsOpen() {
		err = errors.Join(err, ns.handle.Close())
	}
	err = wrap("remove namespace "+ns.name, err)
	*ns = Namespace{handle: netns.None()}
	return err
}

// Leftovers lists the namespaces of this process that were not closed.
func Leftovers() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var left []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), prefix()) {
			left = append(left, entry.Name())
		}
	}
	return left, nil
}

// wrap puts what was being done ahead of err; nil stays nil.
func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}
