package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// stopTime is how long a process has to end when it is told to. An API server would wait for its watchers.
const stopTime = 3 * time.Second

// Process is a server that runs in a machine, with its output in a file.
type Process struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
}

// StartProcess starts a program in the machine, with only PATH and env, KEY=VALUE, in its environment. Its output is appended to
// the log, a file of the host's.
func (m *Machine) StartProcess(log string, env []string, program string, args ...string) (*Process, error) {
	p := &Process{name: filepath.Base(program), log: log, ended: make(chan struct{})}
	file, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer file.Close()
	p.cmd = exec.Command(program, args...)
	p.cmd.Dir = "/"
	p.cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	p.cmd.Stdout, p.cmd.Stderr = file, file
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := m.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended, its log tells
		close(p.ended)
	}()
	return p, nil
}

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Stop tells the process to end, kills it if it doesn't, and waits for its end. What it has started goes on.
func (p *Process) Stop() {
	killer := time.AfterFunc(stopTime, p.Kill)
	defer killer.Stop()
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	<-p.ended
}

// Kill kills the process alone.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// MemoryMB is the process's resident memory.
func (p *Process) MemoryMB() int {
	var size, resident int
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		return 0
	}
	return resident * os.Getpagesize() >> 20
}

// Tail returns the last lines of the log.
func (p *Process) Tail() string {
	const most = 30
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Sprintf("the end of the log of %s:\n%s", p.name, strings.Join(lines[max(0, len(lines)-most):], "\n"))
}
