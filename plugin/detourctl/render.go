package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// skippedError says why a pod would be left alone.
type skippedError struct{ pod, reason string }

func (e skippedError) Error() string {
	return fmt.Sprintf("pod %s is left alone: %s", e.pod, e.reason)
}

type renderOptions struct {
	mesh, manifests, pod string
	podIPs               []string
	family               int
	format               string
	explain              bool
}

func renderCommand() *cobra.Command {
	var o renderOptions
	c := &cobra.Command{
		Use:   "render --mesh MESH --manifests FILE --pod NAMESPACE/NAME",
		Short: "Print the rules that ADD would program for a pod",
		Long: `Print exactly what ADD would program for a pod, as input for iptables-restore --noflush or for nft -f.
Format auto prints what the net conf's backend auto would take on this machine, and says which that is.
Without --pod-ips and --family, both families are printed; the real ADD takes those that the mesh wants for the pod's addresses.
Exit code 3: the pod would be left alone, and why is said on standard error.`,
		Example: `  detourctl render --mesh osm --manifests testdata/demo/osm --pod shop/web --explain
  detourctl render --mesh osm --manifests pods.yaml --pod shop/web --family 4 | iptables-restore --noflush --test`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.render(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.mesh, "mesh", "", "mesh: "+strings.Join(mesh.Names(), ", "))
	f.StringVar(&o.manifests, "manifests", "", "file or folder of YAML with the pod and the mesh's configuration")
	f.StringVar(&o.pod, "pod", "", "pod, as NAMESPACE/NAME")
	f.StringSliceVar(&o.podIPs, "pod-ips", nil, "the pod's addresses, which decide the families")
	f.IntVar(&o.family, "family", 0, "print only this family: 4 or 6")
	f.StringVar(&o.format, "format", "auto", "output format: auto, iptables, nft or json")
	f.BoolVar(&o.explain, "explain", false, "say ahead of each rule why it is there; nft's always have it as their comment")
	for _, name := range []string{"mesh", "manifests", "pod"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return c
}

func (o renderOptions) render(ctx context.Context, out, warnings io.Writer) error {
	dialect, ok := mesh.Find(o.mesh)
	if !ok {
		return fmt.Errorf("--mesh: %q is none of %s", o.mesh, strings.Join(mesh.Names(), ", "))
	}
	addresses, err := o.addresses()
	if err != nil {
		return err
	}
	decision, err := o.decide(ctx, dialect, addresses)
	if err != nil {
		return err
	}
	families, err := o.families(addresses, decision.Families)
	if err != nil {
		return err
	}
	for _, w := range decision.Warnings {
		fmt.Fprintln(warnings, "warning: "+w)
	}
	if decision.Skip != "" {
		return skippedError{o.pod, decision.Skip}
	}
	rs := decision.Policy.Ruleset()
	switch o.format {
	case "json":
		return printJSON(out, rs, families)
	case "auto", "iptables", "nft":
		return o.printProgram(ctx, out, rs, families)
	}
	return fmt.Errorf("--format: %q is none of auto, iptables, nft, json", o.format)
}

// choices are the backends whose language a format is.
var choices = map[string]string{"auto": backend.Auto, "iptables": backend.IPTables, "nft": backend.NFTables}

func (o renderOptions) printProgram(ctx context.Context, out io.Writer, rs rules.Ruleset, families []rules.Family) error {
	program, err := backend.Prepare(ctx, choices[o.format], rs, families)
	if err != nil {
		return err
	}
	if o.format == "auto" {
		// Which iptables it is depends on the pod's namespace.
		fmt.Fprintf(out, "# backend auto takes %s\n", program.Choice())
	}
	_, err = io.WriteString(out, program.Text(o.explain))
	return err
}

func (o renderOptions) decide(ctx context.Context, dialect mesh.Dialect, addresses []netip.Addr) (mesh.Decision, error) {
	namespace, name, ok := strings.Cut(o.pod, "/")
	if !ok {
		return mesh.Decision{}, fmt.Errorf("--pod: %q is not NAMESPACE/NAME", o.pod)
	}
	manifests, err := kube.NewManifests(o.manifests)
	if err != nil {
		return mesh.Decision{}, err
	}
	objects, err := manifests.Lookup(ctx, kube.NewRequest(dialect, namespace, name, ""))
	if err != nil {
		return mesh.Decision{}, err
	}
	facts, err := pod.Parse(objects.Pod)
	if err != nil {
		return mesh.Decision{}, err
	}
	decision, err := dialect.Decide(mesh.Input{Pod: facts, Config: objects.Config, Addresses: addresses})
	if objects.Config == nil {
		decision.Warnings = append(decision.Warnings, objects.ConfigAbsent+": the mesh's defaults hold")
	}
	return decision, err
}

func (o renderOptions) addresses() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, ip := range o.podIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, fmt.Errorf("--pod-ips: %q is not an IP address", ip)
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

// families are those that the mesh decided on for the addresses, or both if none is given, narrowed by --family.
func (o renderOptions) families(addresses []netip.Addr, decided []rules.Family) ([]rules.Family, error) {
	if f := rules.Family(o.family); o.family != 0 {
		if !slices.Contains(rules.Families, f) {
			return nil, fmt.Errorf("--family: %d is neither 4 nor 6", o.family)
		}
		return []rules.Family{f}, nil
	}
	if len(addresses) == 0 {
		return rules.Families, nil
	}
	return decided, nil
}

type jsonFamily struct {
	Family rules.Family `json:"family"`
	Rules  []jsonRule   `json:"rules"`
}

type jsonRule struct {
	Table rules.Table `json:"table"`
	Chain string      `json:"chain"`
	Rule  string      `json:"rule"`
	Why   string      `json:"why"`
}

func printJSON(out io.Writer, rs rules.Ruleset, families []rules.Family) error {
	all := []jsonFamily{}
	for _, f := range families {
		j := jsonFamily{Family: f, Rules: []jsonRule{}}
		for _, r := range iptext.For(rs, f).Rules {
			j.Rules = append(j.Rules, jsonRule{r.Chain.Table, r.Chain.Name, iptext.Print(r), r.Why})
		}
		all = append(all, j)
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(all)
}
