// Command detourctl explains what detour does.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/build/command"
)

// The exit codes of every verb. README.md beside this file says what each verb takes for a finding.
const (
	exitFinding = 1 // the verb did its work and found something wrong
	exitFailed  = 2 // bad input, or the verb could not do its work
	exitUnknown = 3 // trace, verify: not everything could be told; render: the pod would be left alone
)

// codeError ends detourctl with an exit code of its own. It has been told already if err is nil.
type codeError struct {
	code int
	err  error
}

func (e codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e codeError) Unwrap() error { return e.err }

func main() { os.Exit(run()) }

func run() int {
	root := &cobra.Command{
		Use:           "detourctl",
		Short:         "detourctl explains what the CNI plugin detour does",
		Version:       build.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(renderCommand(), verifyCommand(), traceCommand(), probeCommand(), connsCommand(), doctorCommand(), command.Version())
	root.SetErr(errorStream())
	err := root.Execute()
	if err == nil {
		return 0
	}
	ended := codeError{code: exitFailed, err: err}
	errors.As(err, &ended)
	if ended.err != nil {
		fmt.Fprintln(root.ErrOrStderr(), "detourctl: "+plain(strings.ReplaceAll(ended.err.Error(), "\n", "; ")))
	}
	return ended.code
}
