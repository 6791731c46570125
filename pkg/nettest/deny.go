package nettest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Denial is a system call that fails with an error instead of being made: every one of this number or, with Argument, those whose
// argument of that number has this value.
type Denial struct {
	Call     uint32
	Errno    unix.Errno
	Argument *Argument
}

// Argument is one of a system call's, by its number from 0, as 32 bits.
type Argument struct{ Number, Value uint32 }

// denyVariable has the denials for a process that is to become the program.
const denyVariable = "NETTEST_DENY"

// Deny has a program, and all that it starts, run under a seccomp filter. The test's binary installs it and becomes the program, so
// TestMain must call Main. EXECVE can be denied, too.
func Deny(cmd *exec.Cmd, denials ...Denial) {
	if len(denials) == 0 {
		return
	}
	text, err := json.Marshal(denials)
	if err != nil {
		panic(err) // of numbers
	}
	cmd.Args = append([]string{os.Args[0], cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/proc/self/exe"
	cmd.Env = append(cmd.Environ(), denyVariable+"="+string(text))
}

// becomeDenied becomes the program that Deny was asked for, if this process was started for that.
func becomeDenied() error {
	text := os.Getenv(denyVariable)
	if text == "" {
		return nil
	}
	var denials []Denial
	if err := json.Unmarshal([]byte(text), &denials); err != nil {
		return err
	}
	if err := os.Unsetenv(denyVariable); err != nil {
		return err
	}
	program, err := os.Open(os.Args[1])
	if err != nil {
		return err
	}
	arguments, err := syscall.SlicePtrFromStrings(os.Args[1:])
	if err != nil {
		return err
	}
	environment, err := syscall.SlicePtrFromStrings(os.Environ())
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := install(denials); err != nil {
		return err
	}
	empty := [1]byte{}
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, program.Fd(), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&arguments[0])), uintptr(unsafe.Pointer(&environment[0])), unix.AT_EMPTY_PATH, 0)
	return fmt.Errorf("start %s: %w", os.Args[1], errno)
}

// install installs the filter, which needs CAP_SYS_ADMIN.
func install(denials []Denial) error {
	const number, arguments = 0, 16 // offsets in struct seccomp_data
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	equal := func(value uint32, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: otherwise, K: value}
	}
	end := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	var program []unix.SockFilter
	for _, d := range denials {
		refuse := end(unix.SECCOMP_RET_ERRNO | uint32(d.Errno))
		if d.Argument == nil {
			program = append(program, load(number), equal(d.Call, 1), refuse)
			continue
		}
		program = append(program, load(number), equal(d.Call, 3), load(arguments+8*d.Argument.Number), equal(d.Argument.Value, 1), refuse)
	}
	program = append(program, end(unix.SECCOMP_RET_ALLOW))
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter))); errno != 0 {
		return fmt.Errorf("install a seccomp filter: %w", errno)
	}
	return nil
}
