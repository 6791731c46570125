package nettest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// Mounts is a mount namespace of its own, which a process holds.
type Mounts struct {
	holder *exec.Cmd
	stdin  io.Closer
}

// NewMounts makes a mount namespace, in which the shell script has mounted what it likes; nobody else sees it. The caller must
// Close it; it also ends with the calling process.
func NewMounts(script string, args ...string) (*Mounts, error) {
	m := &Mounts{holder: exec.Command("unshare", append([]string{"--mount", "sh", "-ec", script + "\necho mounted\nexec cat", "sh"}, args...)...)}
	var errs strings.Builder
	m.holder.Stderr = &errs
	stdin, err := m.holder.StdinPipe()
	if err != nil {
		return nil, err
	}
	m.stdin = stdin
	stdout, err := m.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.holder.Start(); err != nil {
		return nil, err
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "mounted\n" {
		return nil, errors.Join(fmt.Errorf("mount: %s%s", line, &errs), err, m.Close())
	}
	return m, nil
}

// Path is where the processes outside see a file of the mount namespace.
func (m *Mounts) Path(path string) string { return "/proc/" + m.pid() + "/root" + path }

// Enter makes a command that was not started yet run in the mount namespace.
func (m *Mounts) Enter(cmd *exec.Cmd) error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	cmd.Args = append([]string{"nsenter", "--mount=/proc/" + m.pid() + "/ns/mnt", "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
	return nil
}

// Shell runs a shell script in the mount namespace.
func (m *Mounts) Shell(script string, args ...string) error {
	cmd := exec.Command("/bin/sh", append([]string{"-ec", script, "sh"}, args...)...)
	if err := m.Enter(cmd); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// Close ends the process that holds the mount namespace.
func (m *Mounts) Close() error {
	m.stdin.Close()
	return m.holder.Wait()
}

func (m *Mounts) pid() string { return strconv.Itoa(m.holder.Process.Pid) }
