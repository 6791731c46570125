package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// ID identifies the namespace while it lives, by its file's device and inode.
func (p *Pod) ID() (string, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(p.file.Fd()), &stat); err != nil {
		return "", fmt.Errorf("identify network namespace %s: %w", p.path, err)
	}
	return idOf(stat), nil
}

func idOf(stat unix.Stat_t) string { return fmt.Sprintf("%d-%d", stat.Dev, stat.Ino) }

// retryLock is how often Lock retries.
const retryLock = 5 * time.Millisecond

// Lock waits until no other detour with this state folder programs this namespace, at most until ctx ends, and returns the locked
// file. A program that inherits the file keeps the lock until it ends, so nothing that a killed detour left running can still
// write. Pods do not wait for each other. The file is in the state folder because a process of the pod could lock the namespace's
// own file.
func (p *Pod) Lock(ctx context.Context, stateDir string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("lock network namespace %s: %w", p.path, hostfile.Advise(err))
	}
	id, err := p.ID()
	if err != nil {
		return nil, err
	}
	for {
		path := lockPath(stateDir, id)
		first, err := mark(path)
		if err != nil {
			return fail(err)
		}
		p.First = p.First || first
		file, err := tryLock(path)
		if err == nil {
			p.lock = file
			return file, nil
		}
		if !errors.Is(err, errLocked) && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
		select {
		case <-ctx.Done():
			return fail(fmt.Errorf("another detour is programming it: %w", ctx.Err()))
		case <-time.After(retryLock):
		}
	}
}

// Mark creates the lock file of the namespace at path without entering or locking it. It returns the namespace's ID, and first if
// the file did not exist.
func Mark(stateDir, path string) (id string, first bool, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return "", false, fmt.Errorf("identify network namespace %s: %w", path, err)
	}
	id = idOf(stat)
	first, err = mark(lockPath(stateDir, id))
	return id, first, err
}

// Forget removes the lock file once detour has nothing in the namespace any more. The caller must hold the lock and loses it: the next
// Lock creates a new file, and those that wait for this one notice.
func (p *Pod) Forget() error { return remove(p.lock.Name()) }

// Forget removes the lock file of a namespace that is gone, unless it is locked: the kernel reuses IDs.
func Forget(stateDir, id string) error {
	file, err := tryLock(lockPath(stateDir, id))
	if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock network namespace %s to forget it: %w", id, err)
	}
	defer file.Close()
	return remove(file.Name())
}

// Locks lists the IDs of all namespaces with a lock file.
func Locks(stateDir string) ([]string, error) {
	files, err := os.ReadDir(lockPath(stateDir, ""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list locks of network namespaces: %w", err)
	}
	var ids []string
	for _, f := range files {
		ids = append(ids, f.Name())
	}
	return ids, nil
}

func lockPath(stateDir, id string) string { return filepath.Join(stateDir, "namespaces", id) }

// errLocked says that the lock may be free later.
var errLocked = errors.New("it is locked")

// mark creates a lock file, unless it exists.
func mark(path string) (first bool, err error) {
	file, err := create(path)
	if errors.Is(err, fs.ErrNotExist) { // the node's first
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return false, fmt.Errorf("make state folder: %w", err)
		}
		file, err = create(path)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, file.Close()
}

func create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
}

// tryLock opens and locks a file. Once locked, it must still be the file at its path.
func tryLock(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if err := flock(file); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func flock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return errLocked
	}
	if err != nil {
		return err
	}
	locked, err := file.Stat()
	if err != nil {
		return err
	}
	if there, err := os.Lstat(file.Name()); err != nil || !os.SameFile(there, locked) {
		return errLocked // its holder has removed it
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lock of network namespace: %w", hostfile.Advise(err))
	}
	return nil
}
