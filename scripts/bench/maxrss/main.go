// Command maxrss runs a command with its own standard input and prints the command's peak memory in KiB. A process inherits its
// parent's peak, so the one that measures must be small.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		fail(err)
	}
	child, err := os.StartProcess(os.Args[1], os.Args[1:], &os.ProcAttr{Files: []*os.File{os.Stdin, null, os.Stderr}})
	if err != nil {
		fail(err)
	}
	state, err := child.Wait()
	if err != nil {
		fail(err)
	}
	if !state.Success() {
		fail(fmt.Errorf("%s: %s", os.Args[1], state))
	}
	fmt.Fprintln(os.Stdout, state.SysUsage().(*syscall.Rusage).Maxrss)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "maxrss: "+err.Error())
	os.Exit(1)
}
