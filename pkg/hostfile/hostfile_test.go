package hostfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/hostfile"
)

func TestReadWaitsForNobodyAndTakesNoMoreThanItsLimit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.WriteFile(path("whole"), []byte("12345678"), 0o600), os.WriteFile(path("more"), []byte("123456789"), 0o600),
		os.WriteFile(path("huge"), nil, 0o600), os.Truncate(path("huge"), 1<<40),
		syscall.Mkfifo(path("fifo"), 0o600), os.Symlink("fifo", path("link")), os.Symlink("whole", path("good link")),
	); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]error{
		"whole": nil, "good link": nil, "more": hostfile.ErrTooLarge, "huge": hostfile.ErrTooLarge,
		"fifo": hostfile.ErrNotRegular, "link": hostfile.ErrNotRegular, ".": hostfile.ErrNotRegular, "none": fs.ErrNotExist,
	} {
		text, err := hostfile.Read(path(name), 8)
		if !errors.Is(err, want) || (err == nil) != (string(text) == "12345678") || err != nil && !strings.Contains(err.Error(), path(name)) {
			t.Errorf("%s: got %q, %v, want %v", name, text, err, want)
		}
	}
	if _, err := hostfile.Read("/dev/zero", 8); !errors.Is(err, hostfile.ErrNotRegular) {
		t.Errorf("a device: %v", err)
	}
}

func TestAdviceIsForFilesAlone(t *testing.T) {
	t.Parallel()
	full := &fs.PathError{Op: "write", Path: "/run/x", Err: syscall.ENOSPC}
	if got := hostfile.Advise(full); !errors.Is(got, syscall.ENOSPC) || !strings.HasPrefix(got.Error(), full.Error()+": make room") {
		t.Errorf("got %v", got)
	}
	for _, err := range []error{syscall.ENOSPC, os.NewSyscallError("sendmsg", syscall.EPERM), &fs.PathError{Err: syscall.ENOENT}, nil} {
		if got := hostfile.Advise(err); !errors.Is(got, err) || got != nil && got.Error() != err.Error() {
			t.Errorf("%v: got %v", err, got)
		}
	}
}
