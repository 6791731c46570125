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
)

// ID names the namespace among those that live now, by the device and the inode of its file.
func (p *Pod) ID() (string, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(p.file.Fd()), &stat); err != nil {
		return "", fmt.Errorf("identify network namespace %s: %w", p.path, err)
	}
	return idOf(stat), nil
}

func idOf(stat unix.Stat_t) string { return fmt.Sprintf("%d-%d", stat.Dev, stat.Ino) }

// retryLock is how often Lock asks again.
const retryLock = 5 * time.Millisecond

// Lock waits until no other detour with this state folder programs this namespace, at most until ctx ends, and returns the
// locked file. A program that inherits it keeps the lock until it has ended too, so that nothing a killed detour left running
// can still write. Each namespace has a lock of its own: pods do not wait for each other. It lies in the state folder, where
// no process of the pod gets at it: the namespace's own file may be locked by anybody who can open it.
func (p *Pod) Lock(ctx context.Context, stateDir string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("lock network namespace %s: %w", p.path, err)
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

// Mark makes the file of the lock of the namespace at path, without entering or locking it, and returns its ID and whether
// the file was not there.
func Mark(stateDir, path string) (id string, first bool, err error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return "", false, fmt.Errorf("identify network namespace %s: %w", path, err)
	}
	id = idOf(stat)
	first, err = mark(lockPath(stateDir, id))
	return id, first, err
}

// Forget removes the lock's file, for when nothing in the namespace is detour's any more. The caller has the lock, and has it
// no more from here on: the next one makes a file of its own. Whoever waits for this one finds out that it is no more the lock.
func (p *Pod) Forget() error { return remove(p.lock.Name()) }

// Forget removes the file of the lock of a namespace that is gone, by its ID. One that is locked stays: the kernel gives an
// ID to another namespace when the first has ended.
func Forget(stateDir, id string) error {
	file, err := tryLock(lockPath(stateDir, id))
	if errors.Is(err, errLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	return remove(file.Name())
}

// Locks lists the IDs of all namespaces that have a lock's file.
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

// errLocked says that a lock may be had later.
var errLocked = errors.New("it is locked")

// mark makes a lock's file, unless it is there.
func mark(path string) (first bool, err error) {
	const flags = unix.O_CREAT | unix.O_EXCL | unix.O_RDONLY | unix.O_CLOEXEC
	fd, err := unix.Open(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // the node's first
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return false, fmt.Errorf("make state folder: %w", err)
		}
		fd, err = unix.Open(path, flags, 0o600)
	}
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "make", Path: path, Err: err}
	}
	return true, unix.Close(fd)
}

// tryLock opens and locks a file, which must still be the one at its path when it is locked.
func tryLock(path string) (*os.File, error) {
	file, err := os.Open(path)
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
		return errLocked // by somebody who has removed it
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove lock of network namespace: %w", err)
	}
	return nil
}
