package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen listens at path, with mode 0600 from the start, in its folder, mode 0700. It replaces an earlier agent's socket without a
// moment in which there is none. Anything but a socket stays, and is an error.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := prepareSocket(path); err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		if err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmod
	}}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	l, err := config.Listen(ctx, "unix", temporary)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", &fs.PathError{Op: "bind", Path: temporary, Err: err})
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by then it may be another agent's
	if err := os.Rename(temporary, path); err != nil {
		return nil, errors.Join(fmt.Errorf("make socket: %w", err), l.Close(), os.Remove(temporary))
	}
	return l, nil
}

func prepareSocket(path string) error {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(folder, 0o700); err != nil { // a kubelet creates a hostPath with 0755
		return err
	}
	there, err := os.Lstat(path)
	if err == nil && there.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	return nil
}
