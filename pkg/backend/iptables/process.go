package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// waitSeconds is for iptables before 1.8.6, which ignores XTABLES_LOCKFILE and waits for the host's lock.
func waitSeconds(ctx context.Context) string {
	deadline, ok := ctx.Deadline()
	if !ok {
		return "10"
	}
	return strconv.Itoa(int(math.Max(1, math.Floor(time.Until(deadline).Seconds()))))
}

// process is a running program of iptables.
type process struct {
	ctx            context.Context
	cmd            *exec.Cmd
	stdin          string
	stdout, stderr bytes.Buffer
}

// errNoProgram is for a family that Detect was not asked for.
var errNoProgram = errors.New("iptables has no programs for this family here: install the package iptables")

// start starts a program; lock is nil for one that changes nothing.
func start(ctx context.Context, lock *os.File, path, stdin string, args ...string) (*process, error) {
	if path == "" {
		return nil, errNoProgram
	}
	privateLock()
	p := &process{ctx: ctx, cmd: exec.CommandContext(ctx, path, args...), stdin: stdin}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader(stdin), &p.stdout, &p.stderr
	if lock != nil {
		p.cmd.ExtraFiles = []*os.File{lock} // held until the program ends, even if detour is killed
	}
	p.cmd.WaitDelay = waitDelay
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return p, p.failed(p.cmd.Start())
}

// wait waits until the program ends and returns what it has printed.
func (p *process) wait() (string, error) {
	err := p.failed(p.cmd.Wait())
	return p.stdout.String(), err
}

// failed says in one line what an error of the program means.
func (p *process) failed(err error) error {
	switch name := filepath.Base(p.cmd.Path); {
	case err == nil:
		return nil
	case p.ctx.Err() != nil:
		return fmt.Errorf("%s: %w", name, p.ctx.Err())
	default:
		return fmt.Errorf("%s: %w: %s%s", name, err, explain(p.stderr.String(), p.stdin), lacking(p.stderr.String()))
	}
}

// lacking names the capabilities that a program lacks which has failed with this message; "" if it has all that it needs. Legacy
// iptables opens a raw socket, and says without the right to do so only that it can't initialize a table.
func lacking(message string) string {
	var effective [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &effective[0]); err != nil {
		return ""
	}
	has := func(capability int) bool { return effective[0].Effective&(1<<capability) != 0 }
	switch {
	case !has(unix.CAP_NET_ADMIN):
		return ": CAP_NET_ADMIN is missing"
	case !has(unix.CAP_NET_RAW) && !strings.Contains(message, "(nf_tables)"):
		return ": CAP_NET_RAW is missing"
	}
	return ""
}

// privateLock keeps the legacy programs off the host's /run/xtables.lock, for which every pod start would wait. The caller
// has locked the namespace, so any file that no other process locks will do.
func privateLock() { os.Setenv("XTABLES_LOCKFILE", "/proc/self/stat") }

// explain puts what a program said into one line, with the line of its input that it complained about.
func explain(stderr, stdin string) string {
	said, _, _ := strings.Cut(strings.Join(strings.Fields(stderr), " "), " Try `") // the way to the manual
	m := regexp.MustCompile(`line:? (\d+)`).FindStringSubmatch(said)
	if m == nil {
		return said
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(stdin, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return said
	}
	return fmt.Sprintf("%s (%s)", said, lines[n-1])
}
