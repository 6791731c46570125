package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// The runtime does not take files with these names for network configurations, and Run ignores them.
const (
	tempPrefix = ".detour-"
	tempSuffix = ".tmp"
)

func isTemp(name string) bool {
	return strings.HasPrefix(name, tempPrefix) && strings.HasSuffix(name, tempSuffix)
}

// files changes files. Each change is durable when the method returns, so a power failure can't reorder changes.
type files struct {
	// before is called before each step; it is for tests.
	before func(step, path string) error
}

func (f files) step(step, path string) error {
	if f.before == nil {
		return nil
	}
	return f.before(step, path)
}

// owned is a file's mode and owner; -1 is the agent's own.
type owned struct {
	mode     fs.FileMode
	uid, gid int
}

// rootOnly is for credentials, anyone for programs.
var (
	rootOnly = owned{mode: 0o600, uid: -1, gid: -1}
	anyone   = owned{mode: 0o755, uid: -1, gid: -1}
)

func ownedBy(info fs.FileInfo) owned {
	stat := info.Sys().(*syscall.Stat_t)
	return owned{info.Mode().Perm(), int(stat.Uid), int(stat.Gid)}
}

// write replaces the file at path by a temporary file beside it. A process that has the old one open keeps it.
func (f files) write(path string, content io.Reader, o owned) error {
	return f.temporary(path, content, o, func(temp string) error {
		if err := f.step("rename", path); err != nil {
			return err
		}
		return os.Rename(temp, path)
	})
}

// rewrite is write for a file that others write too: it replaces the file only if its content is still old.
func (f files) rewrite(path string, content []byte, o owned, old []byte) error {
	return f.temporary(path, bytes.NewReader(content), o, func(temp string) error {
		return f.swap(temp, path, old)
	})
}

// temporary writes a file beside path, lets place move it, and removes what is left under its name.
func (f files) temporary(path string, content io.Reader, o owned, place func(temp string) error) (err error) {
	if err := f.step("create", path); err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*"+tempSuffix)
	if err != nil {
		return err
	}
	defer func() {
		if left := os.Remove(temp.Name()); !errors.Is(left, fs.ErrNotExist) {
			err = errors.Join(err, left)
		}
	}()
	if err := f.fill(temp, path, content, o); err != nil {
		return errors.Join(err, temp.Close())
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := place(temp.Name()); err != nil {
		return err
	}
	return f.syncDir(path)
}

func (f files) fill(temp *os.File, path string, content io.Reader, o owned) error {
	if err := f.step("fill", path); err != nil {
		return err
	}
	if _, err := io.Copy(temp, content); err != nil {
		return err
	}
	if err := temp.Chmod(o.mode); err != nil {
		return err
	}
	// Without CAP_CHOWN, an owner other than root is lost. The runtime is root, and a missing plugin is worse.
	if err := temp.Chown(o.uid, o.gid); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	if err := f.step("sync", path); err != nil {
		return err
	}
	return temp.Sync()
}

// copy is write with the content of another file.
func (f files) copy(from, to string, o owned) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	return f.write(to, source, o)
}

// remove removes a file and reports whether it existed.
func (f files) remove(path string) (bool, error) {
	if err := f.step("remove", path); err != nil {
		return false, err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	return true, f.syncDir(path)
}

// clean removes what killed writers left in the folder.
func (f files) clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("clean folder: %w", hostfile.Advise(err))
	}
	for _, e := range entries {
		if !isTemp(e.Name()) {
			continue
		}
		if _, err := f.remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clean folder: %w", hostfile.Advise(err))
		}
	}
	return nil
}

// syncDir makes the entries of path's folder durable.
func (f files) syncDir(path string) error {
	if err := f.step("sync folder", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// identity differs between two files, and before and after a change of one.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
	mode         fs.FileMode
}

func identify(info fs.FileInfo) identity {
	stat := info.Sys().(*syscall.Stat_t)
	return identity{stat.Dev, stat.Ino, stat.Size, time.Unix(stat.Mtim.Unix()), time.Unix(stat.Ctim.Unix()), info.Mode()}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// sameContent compares two files without holding them in memory.
func sameContent(a, b string) (bool, error) {
	x, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer x.Close()
	y, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer y.Close()
	var left, right [64 << 10]byte
	for {
		n, errLeft := io.ReadFull(x, left[:])
		m, errRight := io.ReadFull(y, right[:])
		if !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		for _, err := range []error{errLeft, errRight} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if errLeft != nil && errRight != nil {
			return true, nil
		}
	}
}
