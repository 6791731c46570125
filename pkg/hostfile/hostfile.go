// Package hostfile reads files that other programs write, and says what to do about a disk that fails.
package hostfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotRegular says that a path leads to a folder, a FIFO, a device or a socket.
	ErrNotRegular = errors.New("it is no regular file: put one in its place")
	// ErrTooLarge says that a file has more bytes than its reader takes.
	ErrTooLarge = errors.New("it is too large")
)

// Read returns what is in a file of at most limit bytes. Unlike os.ReadFile, it waits for no writer of a FIFO and takes no more
// memory than limit. The error is an *fs.PathError.
func Read(path string, limit int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	fail := func(err error) ([]byte, error) { return nil, &fs.PathError{Op: "read", Path: path, Err: err} }
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return fail(ErrNotRegular)
	case info.Size() > limit:
		return fail(fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, info.Size(), limit))
	}
	text := bytes.NewBuffer(make([]byte, 0, info.Size()+bytes.MinRead))
	if _, err := text.ReadFrom(io.LimitReader(file, limit+1)); err != nil {
		return nil, err
	}
	if int64(text.Len()) > limit { // it has grown
		return fail(ErrTooLarge)
	}
	return text.Bytes(), nil
}

// remedies are for errors of files and folders alone: the same numbers mean something else of a socket.
var remedies = map[unix.Errno]string{
	unix.ENOSPC:  "make room on that filesystem, which has no block or no inode left (df, df -i)",
	unix.EDQUOT:  "raise the quota of that filesystem, or make room on it",
	unix.EROFS:   "mount that filesystem read-write",
	unix.EIO:     "the kernel's log says what is wrong with that disk (dmesg)",
	unix.EACCES:  "let root use it: look for denials of SELinux or AppArmor",
	unix.EPERM:   "let root use it: look for an immutable attribute (lsattr)",
	unix.EEXIST:  "remove what is in its place",
	unix.ENOTDIR: "make it a folder",
	unix.ELOOP:   "take that loop of symbolic links away",
	unix.EISDIR:  "remove the folder in its place",
}

// Advise adds what to do about it to the error of a file or folder, which names its path. It leaves other errors as they are.
func Advise(err error) error {
	if !errors.As(err, new(*fs.PathError)) && !errors.As(err, new(*os.LinkError)) {
		return err
	}
	var errno unix.Errno
	if !errors.As(err, &errno) || remedies[errno] == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, remedies[errno])
}
