// Package netns enters pods' network namespaces. No other package does.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrHost says that a path names the host's network namespace, which detour never touches.
var ErrHost = errors.New("it is the host's network namespace")

// ErrGone says that a path names no network namespace (any more).
var ErrGone = errors.New("there is no network namespace")

// Pod is an open handle on a pod's network namespace.
type Pod struct {
	path string
	file *os.File
	lock *os.File // nil unless Lock took it
	// First is true if Lock has created the lock file: no detour was in this namespace before, or it has called Forget.
	First bool
}

// Open opens the namespace at path. The error is ErrGone if there is no network namespace, and ErrHost if it is this process's own:
// container runtimes run plugins in the host's.
func Open(path string) (*Pod, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open network namespace %s: %w", path, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	p := &Pod{path: path, file: file}
	if err := p.check(); err != nil {
		p.Close()
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return p, nil
}

func (p *Pod) check() error {
	kind, err := unix.IoctlRetInt(int(p.file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return ErrGone
	}
	own, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	if own.Equal(netns.NsHandle(p.file.Fd())) {
		return ErrHost
	}
	return nil
}

// Close releases the handle and the lock, if Lock took it.
func (p *Pod) Close() error {
	if p.lock != nil {
		p.lock.Close()
	}
	return p.file.Close()
}

// Do runs fn in the namespace; programs that fn starts inherit it. If the thread can't return to its own namespace, that is an error.
// Then the goroutine stays in the pod's namespace and locked to the thread, which ends with it and serves no other.
func (p *Pod) Do(fn func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	if err := netns.Set(netns.NsHandle(p.file.Fd())); err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: run as root, or with CAP_SYS_ADMIN", err)
		}
		return fmt.Errorf("enter network namespace %s: %w", p.path, err)
	}
	err = fn()
	if back := netns.Set(own); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", p.path, back))
	}
	runtime.UnlockOSThread()
	return err
}
