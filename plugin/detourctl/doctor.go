package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/doctor"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/verify"
)

type doctorOptions struct {
	doctor.Doctor
	root   string
	output output
}

func doctorCommand() *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what detour needs of this node, what it would take, and what would fail",
		Long: `Say what detour needs of this node, which backend it would take, what would fail and why, and what to do about it, before any
pod meets it. It tries with detour's own code, in a network namespace of its own, which is gone afterwards, and changes nothing else.
Needs root.
Exit codes: 1: ADD fails, or the runtime does not call detour. 3: not everything could be found out.`,
		Example: `  detourctl doctor
  detourctl doctor --mesh istio -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), screenOf(c)) },
	}
	f := c.Flags()
	f.StringVar(&o.ConfDir, "cni-conf-dir", verify.DefaultConfDir, "the runtime's folder of network configurations")
	f.StringVar(&o.BinDir, "cni-bin-dir", "/opt/cni/bin", "the runtime's folder of plugins")
	f.StringVar(&o.StateDir, "state-dir", netconf.DefaultStateDir, "the state folder, if no net conf names one")
	f.StringSliceVar(&o.Meshes, "mesh", nil, "try this mesh's rules instead of the net conf's; every mesh's if there is no net conf")
	f.IntVar(&o.RuntimePID, "runtime-pid", 0, "the process that starts the plugin (default: containerd, crio or cri-dockerd)")
	f.StringVar(&o.root, "root", "", "the node's root folder, if detourctl runs in a container: /proc/1/root with hostPID")
	o.output.register(c)
	return c
}

func (o doctorOptions) run(ctx context.Context, s screen) error {
	if err := o.output.check(); err != nil {
		return err
	}
	if err := o.enterRoot(); err != nil {
		return err
	}
	report, err := o.Run(ctx)
	if err != nil {
		return err
	}
	if o.output == "json" {
		err = printJSON(s, report)
	} else {
		err = printDoctor(s, report)
	}
	switch {
	case err != nil:
		return err
	case report.Result == doctor.Wrong:
		return codeError{code: exitFinding}
	case report.Result == doctor.Unknown:
		return codeError{code: exitUnknown}
	}
	return nil
}

func (o doctorOptions) enterRoot() error {
	if o.root == "" {
		return nil
	}
	if err := unix.Chroot(o.root); err != nil {
		return fmt.Errorf("--root: enter %s: %w", o.root, err)
	}
	return os.Chdir("/")
}

var doctorStyles = map[doctor.Result]style{doctor.Fine: green, doctor.Limited: yellow, doctor.Unknown: yellow, doctor.Wrong: red}

// printDoctor prints what ADD would take, what was looked at, and which features there are. Below each row that is not fine is what
// to do.
func printDoctor(s screen, r doctor.Report) error {
	fmt.Fprintf(s, "Linux %s\n\n", plain(r.Kernel))
	var table rows
	table.add(doctor.Fine, "", "MESH", "FAMILIES", "RESULT", "BACKEND", "")
	for _, t := range r.Trials {
		var families []string
		for _, f := range t.Families {
			families = append(families, f.String())
		}
		table.add(t.Result, t.Do, t.Mesh, strings.Join(families, "+"), string(t.Result), t.Backend, t.Reason)
	}
	table.add(doctor.Fine, "")
	table.add(doctor.Fine, "", "CHECK", "", "RESULT", "", "FOUND")
	for _, c := range r.Checks {
		table.add(c.Result, c.Do, string(c.Name), "", string(c.Result), "", c.Found)
	}
	if err := table.print(s); err != nil {
		return err
	}
	fmt.Fprintln(s)
	return printFeatures(s, r.Features)
}

// printFeatures prints a line for each feature and a column for each backend.
func printFeatures(s screen, all []doctor.Feature) error {
	var names []doctor.Kind
	var backends []string
	cells := map[string][]string{}
	for _, f := range all {
		if !slices.Contains(names, f.Name) {
			names = append(names, f.Name)
		}
		if !slices.Contains(backends, f.Backend) {
			backends = append(backends, f.Backend)
		}
		key := string(f.Name) + " " + f.Backend
		if f.Present {
			cells[key] = append(cells[key], f.Family.String())
		}
	}
	var table rows
	table.add(doctor.Fine, "", append(append([]string{"FEATURE"}, backends...), "FOR")...)
	for _, name := range names {
		i := slices.IndexFunc(all, func(f doctor.Feature) bool { return f.Name == name })
		row := []string{string(name)}
		for _, b := range backends {
			cell := strings.Join(cells[string(name)+" "+b], "+")
			if cell == "" {
				cell = "-"
			}
			row = append(row, cell)
		}
		table.add(doctor.Fine, "", append(row, all[i].For)...)
	}
	if err := table.print(s); err != nil {
		return err
	}
	for _, f := range all {
		if !f.Present {
			fmt.Fprintf(s, "  %s: %s %s: %s\n    -> %s\n", s.styled(doctorStyles[f.Result], string(f.Name)), f.Backend, f.Family, plain(f.Error), plain(f.Do))
		}
	}
	return nil
}

// rows are a table's, with what to do about each.
type rows struct {
	cells   [][]string
	results []doctor.Result
	do      []string
}

func (r *rows) add(result doctor.Result, do string, cells ...string) {
	r.cells, r.results, r.do = append(r.cells, cells), append(r.results, result), append(r.do, do)
}

func (r *rows) print(s screen) error {
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for _, cells := range r.cells {
		fmt.Fprintln(w, plain2(cells))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for i, line := range strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n") {
		line = strings.TrimRight(line, " ")
		if r.results[i] != doctor.Fine {
			line = s.styled(doctorStyles[r.results[i]], line)
		}
		fmt.Fprintln(s, line)
		if r.do[i] != "" {
			fmt.Fprintf(s, "    -> %s\n", plain(r.do[i]))
		}
	}
	return nil
}

func plain2(cells []string) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = plain(c)
	}
	return strings.Join(out, "\t")
}
