package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/verify"
)

type verifyOptions struct {
	verify.Verifier
	uid    string
	output output
}

func verifyCommand() *cobra.Command {
	var o verifyOptions
	c := &cobra.Command{
		Use:   "verify [NAMESPACE/NAME...]",
		Short: "Say whether this node's pods are as they should be",
		Long: `Say whether the named pods of this node, or all of them, are as they should be: the sidecar is ready and listens, the
kernel has the rules that ADD programmed, these are the ones that the mesh's configuration and the annotations ask for
today, and the application leaves the proxy's ports, user and group alone. Needs root.
Exit codes: 1: something is wrong. 3: nothing is, but not everything could be checked.`,
		Example: `  detourctl verify
  detourctl verify shop/web -o json
  detourctl verify shop/web --manifests pods-and-meshconfig.yaml`,
		RunE: func(c *cobra.Command, pods []string) error { return o.run(c.Context(), screenOf(c), pods) },
	}
	f := c.Flags()
	f.StringVar(&o.StateDir, "state-dir", netconf.DefaultStateDir, "the net conf's stateDir")
	f.StringVar(&o.ConfDir, "cni-conf-dir", verify.DefaultConfDir, "the runtime's folder of network configurations")
	f.StringVar(&o.Manifests, "manifests", "", "take pods and the mesh's configuration from this file or folder of YAML")
	f.StringVar(&o.uid, "pod-uid", "", "the pod's UID, if there are several of its name")
	o.output.register(c)
	return c
}

func (o verifyOptions) run(ctx context.Context, out screen, pods []string) error {
	if err := o.output.check(); err != nil {
		return err
	}
	report, err := o.verify(ctx, pods)
	if err != nil {
		return err
	}
	if o.output == "json" {
		err = printJSON(out, report)
	} else {
		err = printReport(out, report, len(pods) > 0)
	}
	switch {
	case err != nil:
		return err
	case report.Result == verify.Wrong:
		return codeError{code: exitFinding}
	case report.Result == verify.Unknown:
		return codeError{code: exitUnknown}
	}
	return nil
}

func (o verifyOptions) verify(ctx context.Context, pods []string) (verify.Report, error) {
	if o.uid != "" && len(pods) != 1 {
		return verify.Report{}, errors.New("--pod-uid: name one pod with it")
	}
	if len(pods) == 0 {
		return o.All(ctx)
	}
	var ids []pod.ID
	for _, p := range pods {
		id, err := podID(p)
		if err != nil {
			return verify.Report{}, err
		}
		ids = append(ids, id)
	}
	return o.Pods(ctx, ids, o.uid)
}

// printReport prints a line for each pod, and below it what is not as it should be.
// Only a pod that is named has its warnings printed.
func printReport(out screen, report verify.Report, named bool) error {
	if len(report.Pods) == 0 && len(report.Node) == 0 {
		_, err := fmt.Fprintln(out, "no pods: neither detour's records nor the kubelet's log folders name one on this node")
		return err
	}
	var table bytes.Buffer
	rows := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(rows, "POD\tBACKEND\tRULES\tSTATE")
	for _, p := range report.Pods {
		count := ""
		if p.Rules > 0 {
			count = fmt.Sprint(p.Rules)
		}
		fmt.Fprintf(rows, "%s\t%s\t%s\t%s\n", p.Pod, p.Backend, count, plain(stateOf(p)))
	}
	if err := rows.Flush(); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")
	fmt.Fprintln(out, out.styled(bold, out.cut(lines[0], 0)))
	for i, p := range report.Pods {
		fmt.Fprintln(out, out.styled(styles[p.Result], out.cut(lines[i+1], 0)))
		printDetails(out, "", p.Findings)
		printDetails(out, "not checked: ", p.Unknown)
		if named {
			printWarnings(out, p.Warnings)
		}
	}
	printDetails(out, "", report.Node)
	return nil
}

var styles = map[verify.Result]style{verify.Fine: green, verify.Skipped: dim, verify.Unknown: yellow, verify.Wrong: red}

func printDetails(out screen, prefix string, list []verify.Finding) {
	for _, f := range list {
		fmt.Fprintf(out, "  %s%s: %s\n", prefix, out.styled(bold, string(f.Name)), plain(f.Text))
		fmt.Fprintf(out, "    -> %s\n", plain(f.Do))
	}
}

func printWarnings(out screen, warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(out, "  %s: %s\n", out.styled(yellow, "warning"), plain(w))
	}
}

func stateOf(p verify.Pod) string {
	state := "fine"
	switch {
	case p.Result == verify.Skipped:
		return "skipped: " + p.Reason
	case len(p.Findings) == 1:
		state = "1 finding"
	case len(p.Findings) > 1:
		state = fmt.Sprintf("%d findings", len(p.Findings))
	case p.Result == verify.Unknown:
		state = "not everything could be checked"
	}
	if p.Gate != "" {
		state += "; " + string(p.Gate)
	}
	if n := len(p.Warnings); n > 0 {
		state += fmt.Sprintf("; warnings: %d", n)
	}
	return state
}
