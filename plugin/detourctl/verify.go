package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/netns"
)

// errDifferent says that some pod's rules differ from those that were programmed.
var errDifferent = errors.New("not every pod is as detour programmed it")

type verifyOptions struct{ stateDir string }

func verifyCommand() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use:   "verify [NAMESPACE/POD...]",
		Short: "Compare the kernel's rules with what ADD programmed, for this node's pods",
		Long: `Compare the kernel's rules with what ADD programmed, for the named pods of this node or all of them. Needs root.
Exit code 1: a pod differs, or could not be looked at.`,
		RunE: func(c *cobra.Command, pods []string) error { return o.verify(c.Context(), c.OutOrStdout(), pods) },
	}
	c.Flags().StringVar(&o.stateDir, "state-dir", netconf.DefaultStateDir, "the net conf's stateDir")
	return c
}

func (o verifyOptions) verify(ctx context.Context, out io.Writer, pods []string) error {
	records, err := o.records(pods)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "POD\tBACKEND\tRULES\tSTATE")
	same := true
	for _, r := range records {
		states, ok := state(ctx, r)
		same = same && ok
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", r.Pod, r.Backend, backend.RuleCount(r), states[0])
		for _, s := range states[1:] {
			fmt.Fprintf(table, "\t\t\t%s\n", s)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if !same {
		return codeError{exitFinding, errDifferent}
	}
	return nil
}

// records returns the records of the pods, or of all pods if none is named. A named pod without a record is an error.
func (o verifyOptions) records(pods []string) ([]attachment.Record, error) {
	var records []attachment.Record
	var unreadable []error
	err := attachment.NewStore(o.stateDir).All(func(r attachment.Record, err error) {
		if err != nil {
			unreadable = append(unreadable, err)
		} else if len(pods) == 0 || slices.Contains(pods, r.Pod) {
			records = append(records, r)
		}
	})
	if err := errors.Join(append(unreadable, err)...); err != nil {
		return nil, err
	}
	for _, pod := range pods {
		if !slices.ContainsFunc(records, func(r attachment.Record) bool { return r.Pod == pod }) {
			return nil, fmt.Errorf("%s has no record of pod %s: detour was not called for it on this node", o.stateDir, pod)
		}
	}
	slices.SortFunc(records, func(a, b attachment.Record) int { return strings.Compare(a.Pod, b.Pod) })
	return records, nil
}

// state describes the pod's rules, line by line. ok is false if they differ from those that were programmed.
func state(ctx context.Context, r attachment.Record) (lines []string, ok bool) {
	if r.Outcome != attachment.Programmed {
		return []string{fmt.Sprintf("%s: %s", r.Outcome, r.Reason)}, r.Outcome == attachment.Skipped
	}
	ns, err := netns.Open(r.Netns)
	if err != nil {
		return []string{err.Error()}, false
	}
	defer ns.Close()
	var gate backend.Gate
	err = ns.Do(func() error {
		var err error
		if lines, err = backend.Differences(ctx, r); err == nil {
			gate, err = backend.GateOf(r)
		}
		return err
	})
	switch {
	case err != nil:
		return []string{err.Error()}, false
	case lines != nil:
		return lines, false
	case gate != "":
		return []string{"as programmed; " + string(gate)}, true
	}
	return []string{"as programmed"}, true
}
