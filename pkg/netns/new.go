package netns

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// InNew runs fn in a new network namespace; programs that fn starts inherit it. The namespace has no name: the kernel removes it once
// fn has returned or the process has ended, however it ends. If the thread can't return to its own namespace, the goroutine stays
// locked to it.
func InNew(fn func() error) error {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	created, err := netns.New()
	if err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: run as root, or with CAP_SYS_ADMIN", err)
		}
		return fmt.Errorf("make a network namespace: %w", err)
	}
	created.Close()
	err = fn()
	if back := netns.Set(own); back != nil {
		return errors.Join(err, fmt.Errorf("leave the new network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
