package nettest

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// errLeft is what a caller gets when its function ended its goroutine, as t.FailNow does, rather than return.
var errLeft = errors.New("the function ended its goroutine")

// onOwnThread runs fn on an OS thread that ends with it, so that fn may change the thread's namespace, user and
// capabilities and need not (and so cannot fail to) change them back.
func onOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errLeft
		defer func() { done <- err }()
		runtime.LockOSThread()
		// The main thread can't end, and /proc/self shows its state as the process's. Hold it, so that the next
		// goroutine gets another one.
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			err = onOwnThread(fn)
			return
		}
		err = fn()
	}()
	return <-done
}
