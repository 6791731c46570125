// Command detourctl explains what detour does.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "development"

// Exit codes.
const (
	exitFailed  = 1
	exitSkipped = 3 // the pod would be left alone
)

func main() { os.Exit(run()) }

func run() int {
	root := &cobra.Command{
		Use:           "detourctl",
		Short:         "detourctl explains what the CNI plugin detour does",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(renderCommand(), verifyCommand())
	err := root.Execute()
	var skipped skippedError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &skipped):
		fmt.Fprintln(os.Stderr, skipped)
		return exitSkipped
	}
	fmt.Fprintln(os.Stderr, "detourctl: "+err.Error())
	return exitFailed
}
