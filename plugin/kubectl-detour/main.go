// Command kubectl-detour is the kubectl plugin `kubectl detour`: it runs detourctl where the question is, from anywhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/build/command"
)

// The exit codes that are not detourctl's.
const (
	exitFailed      = 2   // bad input, or detourctl could not be run
	exitInterrupted = 130 // by Ctrl-C or another signal
)

// exitCode is what detourctl ended with. It has said why.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// Without SIGPIPE, a reader that leaves, such as head, would end this process ahead of its pod.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	klog.SetLogger(logr.Discard()) // an error is told once, as the result
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, context.Canceled), errors.Is(err, syscall.EPIPE): // the reader has left
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "kubectl detour: "+err.Error())
	return exitFailed
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-detour",
		Short: "Ask detourctl about a pod or a node, from anywhere",
		Long: `Find the node of a pod, run detourctl there in a pod that lives only as long as the answer takes, and pass on its output and
its exit code. The cluster need not run detour's agent.

TARGET is pod/NAME, node/NAME or one of ` + workloadNames() + ` with /NAME. KIND/NAMESPACE/NAME names another namespace than -n.

` + rightsTable(),
		Version:       build.Get().String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl detour"},
	}
	var o options
	o.register(root.PersistentFlags())
	for _, v := range verbs {
		root.AddCommand(verbCommand(v, &o))
	}
	root.AddCommand(command.Version())
	return root
}

func verbCommand(v verb, o *options) *cobra.Command {
	return &cobra.Command{
		Use:   v.name + " TARGET [flags of detourctl " + v.name + "]",
		Short: v.question,
		Long: v.question + "\n\n" + v.about + `
Flags that are not listed below go to detourctl as they are. They come after TARGET.`,
		Example:            v.examples,
		DisableFlagParsing: true, // cobra would refuse detourctl's flags
		RunE: func(c *cobra.Command, args []string) error {
			flags := c.Flags()
			flags.AddFlagSet(c.InheritedFlags())
			c.InitDefaultHelpFlag()
			own, rest := split(flags, args)
			if err := flags.Parse(own); err != nil {
				return err
			}
			if help, err := flags.GetBool("help"); help || err != nil {
				return errors.Join(err, c.Help())
			}
			return o.ask(c, v, rest)
		},
	}
}
