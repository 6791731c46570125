// Command detour-agent is the node agent: it keeps detour installed on its node and answers the plugin's lookups.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/build"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "detour-agent",
		Short:         "detour-agent keeps the CNI plugin detour installed on a node and serves it",
		Version:       build.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), uninstallCommand(), uninstallNodesCommand())
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "detour-agent: "+err.Error())
		return 1
	}
	return 0
}
