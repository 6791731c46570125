package faults

import (
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Patience is how long Run waits for a program, and then for what the program started, before it kills.
const Patience = 2 * time.Minute

// Run runs the program with a fault and returns when the program has ended, as a runtime would; see Result.Wait. The error is the
// harness's; the program's is in the result. No process outlives the test.
func Run(cmd *exec.Cmd, fault Fault) (Result, error) {
	type outcome struct {
		Result
		error
	}
	result, ended := make(chan outcome), make(chan struct{})
	left := false
	go func() { // its thread is the program's parent for the kernel, and dies with the goroutine
		defer close(ended)
		runtime.LockOSThread()
		listener, err := start(cmd)
		if err != nil {
			result <- outcome{error: err}
			return
		}
		s := &session{listener: listener, fault: fault, program: cmd.Process, processes: map[uint32]process{}, sockets: map[string]string{}}
		served := make(chan struct{})
		go func() { defer close(served); s.serve() }()
		r := s.wait(cmd)
		r.ended = ended
		r.left = &left
		result <- outcome{r, nil}
		orphans := time.AfterFunc(Patience, s.killAll)
		<-served
		left = !orphans.Stop()
		unix.Close(listener)
	}()
	o := <-result
	return o.Result, o.error
}

// session is one run of a program.
type session struct {
	listener int
	fault    Fault
	program  *os.Process
	launched bool // the launcher has become the program

	processes map[uint32]process // by thread
	sockets   map[string]string  // what they are, by link in /proc

	mu     sync.Mutex
	calls  []Call
	struck *Call
}

func (s *session) killAll() { _ = unix.Kill(-s.program.Pid, unix.SIGKILL) }

// wait waits for the program, not for its children.
func (s *session) wait(cmd *exec.Cmd) Result {
	var r Result
	hung := time.AfterFunc(Patience, s.killAll)
	cmd.WaitDelay = time.Second // its children may hold its pipes open
	r.Err = cmd.Wait()
	r.Hung = !hung.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Calls, r.Struck = s.calls, s.struck
	return r
}

// notification is struct seccomp_notif of linux/seccomp.h.
type notification struct {
	id         uint64
	tid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// notifSetFlags is SECCOMP_IOCTL_NOTIF_SET_FLAGS.
const notifSetFlags = 0x40082104

// serve answers all calls until no process is under the filter any more.
func (s *session) serve() {
	// The answered thread runs on this CPU at once. Older kernels can't.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), notifSetFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	poll := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && err != unix.EINTR {
			return
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			if poll[0].Revents != 0 {
				return
			}
			continue
		}
		var n notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // the caller has died
		}
		a := answer{id: n.id}
		if errno := s.meet(n); errno != 0 {
			a.errno = -int32(errno)
		} else {
			a.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&a))) // the caller may have died
	}
}

// meet lets the fault decide about a call and carries out the kill, or returns the error.
func (s *session) meet(n notification) unix.Errno {
	c := s.describe(n)
	if !s.launched || runtimes(c) {
		s.launched = true // by its execve, the first call of all
		return 0
	}
	s.mu.Lock()
	c.N = len(s.calls) + 1
	s.calls = append(s.calls, c)
	a := s.fault(c)
	if a != (Action{}) && s.struck == nil {
		s.struck = &c
	}
	s.mu.Unlock()
	s.kill(a.kill, c)
	return a.errno
}

// kill kills, and returns when the victim has ended; of all, when the program has.
func (s *session) kill(v Victim, c Call) {
	if v == 0 {
		return
	}
	pid := s.program.Pid
	if v == Caller {
		pid = c.PID
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(fd)
	if v == All {
		s.killAll()
	} else {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(Patience.Milliseconds()))
}
