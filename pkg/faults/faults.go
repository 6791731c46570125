// Package faults stops a program at any of its system calls, or makes one fail. It is for tests only.
//
// A seccomp filter hands the program's interesting system calls to the test before the kernel carries them out: those that have an
// effect outside, or that can fail for reasons outside. The calls of all threads and children are one sequence, numbered from 1.
// Each number is a place to stop the program, or to fail one call:
//
//	calls, err := faults.Record(exec.Command("program"))
//	for n := 1; ; n++ {
//		cmd := exec.Command("program")
//		r, err := faults.Run(cmd, faults.KillBefore(n, faults.Program))
//		if err != nil {
//			t.Fatal(err)
//		}
//		if r.Struck == nil {
//			break // the program has fewer calls
//		}
//		r.Wait() // what it started may outlive it for a moment
//		... // the next step, then look: t.Errorf("killed before %s: ...", r.Struck)
//	}
//
// cmd is one that is not started yet. Its environment gets GODEBUG settings that make a Go runtime's own calls predictable. Two runs
// may still differ where threads, or parent and child, run side by side: believe Struck, not the record. Programs that set user IDs
// on execution are not supported.
//
// The package is our own because strace's --inject counts the calls of each thread. Which thread of a Go program makes a call
// differs from run to run, so its n-th call can't be repeated.
package faults

import (
	"fmt"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Call is one system call.
type Call struct {
	N       int    // its number in the sequence, from 1
	PID     int    // of the calling process
	Program string // the calling process's name, as in /proc/PID/comm
	Child   bool   // the caller is not the program itself, but a process that it started
	Name    string // such as "openat"
	Detail  string // paths, or what the file descriptor is: a path, "pipe", "socket netlink 12"
}

// String is such as "call 12, detour's renameat(/run/a.tmp, /run/a)".
func (c *Call) String() string {
	if c == nil {
		return "no call"
	}
	return fmt.Sprintf("call %d, %s's %s(%s)", c.N, c.Program, c.Name, c.Detail)
}

// Victim says which processes a kill meets.
type Victim int

// The victims: a runtime's timeout kills the program, the kernel's OOM killer one process, the end of a cgroup all of them.
const (
	Program Victim = iota + 1
	Caller
	All
)

func (v Victim) String() string { return [...]string{"nobody", "the program", "the caller", "all"}[v] }

// Action is what happens to a call. The zero Action lets it pass.
type Action struct {
	errno unix.Errno
	kill  Victim
}

// Errno answers a call with an error; the kernel never sees it.
func Errno(e unix.Errno) Action { return Action{errno: e} }

// Kill kills before the call.
func Kill(v Victim) Action { return Action{kill: v} }

// Fault decides what happens to each call. It runs while the caller waits, one call after the other.
type Fault func(Call) Action

// KillBefore kills before call n.
func KillBefore(n int, v Victim) Fault { return at(n, Kill(v)) }

// Fail answers call n with an error.
func Fail(n int, e unix.Errno) Fault { return at(n, Errno(e)) }

func at(n int, a Action) Fault {
	return func(c Call) Action {
		if c.N == n {
			return a
		}
		return Action{}
	}
}

// Result is how a program went.
type Result struct {
	Calls  []Call // up to the program's end
	Struck *Call  // the first that was not let pass; nil if there was none
	Err    error  // as cmd.Wait returned it
	Hung   bool   // it was killed because it took longer than Patience

	ended <-chan struct{}
	left  *bool
}

// Wait waits until no process that the program started runs any more. It reports whether they had to be killed after Patience.
func (r Result) Wait() (left bool) {
	<-r.ended
	return *r.left
}

// Record runs the program without a fault and returns its calls. An error is the program's or the harness's.
func Record(cmd *exec.Cmd) ([]Call, error) {
	r, err := Run(cmd, func(Call) Action { return Action{} })
	if err != nil {
		return nil, err
	}
	r.Wait()
	return r.Calls, r.Err
}
