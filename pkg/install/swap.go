package install

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errChanged says that somebody else changed a file between reading and replacing it. The next round sees the change.
var errChanged = errors.New("somebody else changed it meanwhile")

// swap puts the file temp in the place of path, whose content has to be old. Somebody else may rename a file over path, or write
// into the one that is there, at any moment, and that change must not get lost. So the two files change places, and the one that
// came out is looked at: if it is not what was read before, it goes back.
func (f files) swap(temp, path string, old []byte) error {
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, old) {
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
		return os.Rename(temp, path) // the filesystem can't do it: a change of the last moment gets lost
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

// putBack puts what came out back to path, where what was put in has to come out. If something else does, that is a newer change
// and goes back in its turn.
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

// swapFailed tells a file that somebody has removed meanwhile from what is an error.
func swapFailed(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return errChanged
	}
	return err
}

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// writersPatience is how long somebody may keep a file open for writing until it is judged by what it has.
const writersPatience = 200 * time.Millisecond

// sight is what a file was when it was looked at.
type sight struct {
	info fs.FileInfo
	text []byte
}

func (s sight) is(other sight) bool {
	return os.SameFile(s.info, other.info) && bytes.Equal(s.text, other.text)
}

// seen looks at a file, which is to be put to path or came out there, once nobody writes to it any more.
func (f files) seen(temp, path string) (sight, error) {
	if err := f.step("look", path); err != nil {
		return sight{}, err
	}
	file, err := os.OpenFile(temp, os.O_RDONLY|unix.O_NOFOLLOW, 0)
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

// isWritten says whether anybody has the file open for writing: the kernel grants a lease for reading only if nobody has. Whoever
// opens it while we have the lease waits until it is given back. Where there are no leases, nobody writes.
func isWritten(file *os.File) bool {
	_, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}

func beingWritten(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return isWritten(file)
}
