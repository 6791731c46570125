package nettest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Process stands for a process: its sockets, those that it accepts too, are created in its namespace by its user and
// group, and these are what netfilter's owner match sees. It is only threads of this process, so it may be used
// concurrently.
type Process struct {
	Namespace *Namespace
	UID, GID  uint32
}

// own is this very process, in another namespace.
func own(ns *Namespace) Process {
	return Process{Namespace: ns, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

// do runs fn in the namespace, as user and group.
func (p Process) do(fn func() error) error {
	return p.Namespace.Do(func() error {
		if err := p.become(); err != nil {
			return err
		}
		return fn()
	})
}

// become sets the filesystem UID and GID of the calling thread alone; the thread keeps its real ones.
func (p Process) become() error {
	return errors.Join(
		becomeOne("GID", p.GID, unix.SetfsgidRetGid),
		becomeOne("UID", p.UID, unix.SetfsuidRetUid),
	)
}

// becomeOne sets one of the filesystem IDs by its system call, which returns the ID that was set before.
func becomeOne(what string, id uint32, set func(int) (int, error)) error {
	if _, err := set(int(id)); err != nil {
		return fmt.Errorf("become %s %d: %w", what, id, err)
	}
	// The system call reports no failure: ask with an ID that doesn't exist, which changes nothing.
	if now, err := set(-1); err != nil || uint32(now) != id {
		return fmt.Errorf("become %s %d: still %d: %w", what, id, now, os.ErrPermission)
	}
	return nil
}
