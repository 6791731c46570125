//go:build kubeapi

package apitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// process is a server that runs beside the tests, with its output in a file.
type process struct {
	name, log string
	args      []string // the program and its arguments
	pid       int
	ended     chan struct{}
}

// startProcess must be called on the main thread: the kernel kills the process when the calling thread ends.
func startProcess(dir, program string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(program), args: append([]string{program}, args...), ended: make(chan struct{})}
	p.log = filepath.Join(dir, p.name+".log")
	log, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	p.pid = cmd.Process.Pid
	go func() {
		cmd.Wait() // how it ended is of no interest: its log tells, and stop kills it
		close(p.ended)
	}()
	return p, nil
}

// stop kills the process and what it has started, and waits for its end. Nothing of it is needed any more.
func (p *process) stop() {
	select {
	case <-p.ended:
		return
	default:
	}
	syscall.Kill(-p.pid, syscall.SIGKILL)
	<-p.ended
}

// tail returns the last lines of the log.
func (p *process) tail() string {
	const most = 30
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return fmt.Sprintf("the end of the log of %s:\n%s", p.name, strings.Join(lines[max(0, len(lines)-most):], "\n"))
}
