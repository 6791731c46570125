package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// launcher is the name under which the test binary runs itself: its arguments are the socket's number, the program's path and the
// program's arguments. It puts itself under the filter, sends the listener, and becomes the program.
const launcher = "detour-faults-launcher"

func init() {
	if os.Args[0] == launcher {
		fmt.Fprintln(os.Stderr, "faults: ", launch(os.Args[1], os.Args[2], os.Args[3:]))
		os.Exit(1)
	}
}

func launch(socket, path string, args []string) error {
	var fd int
	if _, err := fmt.Sscan(socket, &fd); err != nil {
		return err
	}
	unix.CloseOnExec(fd)
	listener, sent := make(chan int), make(chan error)
	go func() { sent <- unix.Sendmsg(fd, []byte{0}, unix.UnixRights(<-listener), nil, 0) }() // by a thread without the filter
	runtime.LockOSThread()
	l, err := listen()
	if err != nil {
		return err
	}
	listener <- l
	if err := <-sent; err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

// calmRuntime are settings that keep a Go runtime from making calls of its own at random times.
const calmRuntime = "asyncpreemptoff=1,updatemaxprocs=0"

// start starts the program and returns the listener. The program dies with the calling thread.
func start(cmd *exec.Cmd) (listener int, err error) {
	if cmd.Err != nil {
		return 0, cmd.Err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	cmd.Args = slices.Concat([]string{launcher, fmt.Sprint(3 + len(cmd.ExtraFiles)), cmd.Path}, cmd.Args)
	cmd.Path = "/proc/self/exe"
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	cmd.Env = calm(cmd.Environ())
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	theirs.Close()
	if listener, err = receive(pair[0]); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return 0, fmt.Errorf("put %s under a seccomp filter with a listener: %w", cmd.Args[2], err)
	}
	return listener, nil
}

func calm(env []string) []string {
	settings := calmRuntime
	for _, e := range env {
		if had, ok := strings.CutPrefix(e, "GODEBUG="); ok && had != "" {
			settings = had + "," + calmRuntime
		}
	}
	return append(env, "GODEBUG="+settings)
}

func receive(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err == nil && len(messages) == 0 {
		err = errors.New("the launcher has sent nothing")
	}
	if err != nil {
		return 0, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return 0, err
	}
	return fds[0], nil
}
