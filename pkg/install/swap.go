package install

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/hostfile"
)

// errChanged says that another program changed a file between reading and replacing it. The next round sees the change.
var errChanged = errors.New("another program changed it meanwhile")

// swap replaces path, whose content has to be old, by the file temp. At any moment, another program may rename a file over path or
// write into it, and that change must not get lost. So the two files change places, and if the one that came out is not what was
// read before, it goes back.
func (f files) swap(temp, path string, old []byte) error {
	if now, err := hostfile.Read(path, maxConfSize); err != nil || !bytes.Equal(now, old) {
		return errors.Join(errChanged, err)
	}
	put, err := f.seen(temp, path)
	if err != nil {
		return err
	}
	err = f.step("swap", path)
	if err == nil {
		err = exchange(temp, path)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(temp, path) // the filesystem can't exchange: a change at the last moment gets lost
	}
	if err != nil {
		return swapFailed(err)
	}
	out, err := f.seen(temp, path)
	if err == nil && bytes.Equal(out.text, old) {
		return nil
	}
	return errors.Join(err, f.putBack(temp, path, out, put))
}

// putBack exchanges what came out for what was put in. If another file comes out instead, that is a newer change and goes back in
// its turn.
func (f files) putBack(temp, path string, out, put sight) error {
	for {
		if err := exchange(temp, path); err != nil {
			return swapFailed(err)
		}
		next, err := f.seen(temp, path)
		if err != nil || next.is(put) {
			return errors.Join(errChanged, err)
		}
		out, put = next, out
	}
}

// swapFailed tells a file that was removed meanwhile from an error.
func swapFailed(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return errChanged
	}
	return err
}

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// writersPatience is how long a file may be open for writing until its content counts.
const writersPatience = 200 * time.Millisecond

// sight is a file and its content at some moment.
type sight struct {
	info fs.FileInfo
	text []byte
}

func (s sight) is(other sight) bool {
	return os.SameFile(s.info, other.info) && bytes.Equal(s.text, other.text)
}

// seen reads the file temp, which goes to path or came from there, once nobody writes to it.
func (f files) seen(temp, path string) (sight, error) {
	if err := f.step("look", path); err != nil {
		return sight{}, err
	}
	file, err := os.OpenFile(temp, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return sight{}, err
	}
	defer file.Close()
	for end := time.Now().Add(writersPatience); isWritten(file) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	info, err := file.Stat()
	if err != nil {
		return sight{}, err
	}
	text, err := io.ReadAll(file)
	return sight{info, text}, err
}

// isWritten reports whether a process has the file open for writing: only if none has, the kernel grants a read lease. A process
// that opens the file meanwhile waits until the lease is given back. Where there are no leases, isWritten returns false.
func isWritten(file *os.File) bool {
	_, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}

func beingWritten(path string) bool {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer file.Close()
	return isWritten(file)
}
