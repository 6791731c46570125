// Package machine makes a machine for tests out of namespaces: PIDs, mounts, network, IPC and host name of its own, a disk
// that is a folder, and nothing of it on the host. Its folders /etc, /opt and /var are the disk's, /run, /tmp and its sysctls
// outside /proc/sys/net are gone when it stops, and the rest it shares with the host. The kernel ends everything in it
// with its first process, also when the program that started it is killed.
//
// What the machine's processes do to cgroups is not undone: see Cgroup.
package machine

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaces are the machine's own, by their names in /proc/PID/ns, in the order in which they are entered: a path of
// /proc is of no use after mnt.
var namespaces = []struct {
	name string
	flag uintptr
}{
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"net", unix.CLONE_NEWNET},
	{"pid", unix.CLONE_NEWPID},
	{"mnt", unix.CLONE_NEWNS},
}

// Machine is a running machine. Its methods may be called concurrently, but for Kill.
type Machine struct {
	name   string
	bootID string
	init   *exec.Cmd
	stdin  io.Closer
	ids    map[string]string // of its namespaces, by their names
}

// Start boots a machine from a disk: a folder, which it creates if there is none. The main function of the program that
// calls it must begin with IsInit.
func Start(name, disk string) (*Machine, error) {
	bootID, err := newBootID()
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", name, err)
	}
	m := &Machine{name: name, bootID: bootID, init: exec.Command("/proc/self/exe", initCommand, name, disk, bootID)}
	m.init.Stderr = os.Stderr
	m.init.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for the program, which stops the machine
	for _, ns := range namespaces {
		m.init.SysProcAttr.Cloneflags |= ns.flag
	}
	if err := m.boot(); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", name, err)
	}
	return m, nil
}

func (m *Machine) boot() error {
	stdin, err := m.init.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := m.init.StdoutPipe()
	if err != nil {
		return err
	}
	if err := m.init.Start(); err != nil {
		return err
	}
	m.stdin = stdin
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || strings.TrimSpace(line) != readyLine {
		m.Kill()
		return fmt.Errorf("its first process said %q and not that it is ready", line)
	}
	m.ids = map[string]string{}
	for _, ns := range namespaces {
		if m.ids[ns.name], err = os.Readlink(m.namespace(ns.name)); err != nil {
			m.Kill()
			return err
		}
	}
	return nil
}

// BootID is the machine's /proc/sys/kernel/random/boot_id, which differs after each boot.
func (m *Machine) BootID() string { return m.bootID }

// PID is that of the machine's first process as the host sees it.
func (m *Machine) PID() int { return m.init.Process.Pid }

func (m *Machine) namespace(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", m.PID(), name) }

// Command returns a command that runs in the machine.
func (m *Machine) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	return m.nsenter(ctx, []string{"--ipc", "--uts", "--net", "--pid", "--mount", "--wd=/"}, program, args)
}

// NetCommand returns a command that sees the files of the host and the network of the machine.
func (m *Machine) NetCommand(ctx context.Context, program string, args ...string) *exec.Cmd {
	return m.nsenter(ctx, []string{"--net", "--pid"}, program, args)
}

// nsenter runs a program in namespaces of the machine: always in that of its PIDs too, so that it ends with the machine. It
// then is a child of nsenter, to which a signal would go alone.
func (m *Machine) nsenter(ctx context.Context, options []string, program string, args []string) *exec.Cmd {
	all := slices.Concat([]string{"--target", strconv.Itoa(m.PID())}, options, []string{"--", program}, args)
	cmd := exec.CommandContext(ctx, "nsenter", all...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// Link gives the machine a link of that name whose other end is eth0 of another machine. One that is there is replaced: it
// may be the link to a machine that was killed, because the kernel takes its time to remove a network.
func (m *Machine) Link(ctx context.Context, name string, to *Machine) error {
	script := fmt.Sprintf(`
		! ip link show %[1]s >/dev/null 2>&1 || ip link delete %[1]s
		ip link add %[1]s type veth peer name eth0 netns %[2]d`, name, to.PID())
	out, err := exec.CommandContext(ctx, "nsenter", "--net="+m.namespace("net"), "sh", "-euc", script).CombinedOutput()
	if err != nil {
		return fmt.Errorf("link machines %s and %s: %w: %s", m.name, to.name, err, out)
	}
	return nil
}

// start starts a command in the machine as this process's own child, which can be signalled and waited for.
func (m *Machine) start(cmd *exec.Cmd) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		// The main thread can't end, and /proc/self shows its state as the process's. Hold it, so that the next
		// goroutine gets another one.
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- m.start(cmd)
			return
		}
		err := m.enter()
		if err == nil {
			err = cmd.Start()
		}
		result <- err
	}()
	return <-result
}

// enter moves the calling thread into the machine, but for the PIDs: only its children get such of the machine.
func (m *Machine) enter() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare root and working folder: %w", err)
	}
	for _, ns := range namespaces {
		file, err := os.Open(m.namespace(ns.name))
		if err != nil {
			return fmt.Errorf("enter machine %s: %w", m.name, err)
		}
		err = unix.Setns(int(file.Fd()), int(ns.flag))
		file.Close()
		if err != nil {
			return fmt.Errorf("enter namespace %s of machine %s: %w", ns.name, m.name, err)
		}
	}
	return nil
}

// Kill is the power button: all processes of the machine are killed, and when it returns, they are gone, and with them the
// mounts and the network. The disk remains. A second Kill does nothing.
func (m *Machine) Kill() {
	m.stdin.Close()
	_ = m.init.Process.Kill() // it may have ended by itself
	_ = m.init.Wait()         // killed, as it should be
}
