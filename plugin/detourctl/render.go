package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/rules"
)

type renderOptions struct {
	conf, mesh     string
	manifests, pod string
	podIPs         []string
	family         int
	format         string
	explain        bool
}

func renderCommand() *cobra.Command {
	var o renderOptions
	c := &cobra.Command{
		Use:   "render (--conf FILE | --mesh MESH) --manifests FILE --pod NAMESPACE/NAME",
		Short: "Print the rules that ADD would program for a pod",
		Long: `Print exactly what ADD would program for a pod, as input for iptables-restore --noflush or for nft -f.
The net conf decides as it does in ADD: --conf takes one, or a conflist as in /etc/cni/net.d; --mesh stands for one that has
only the mesh. Pod and mesh configuration come from --manifests.
Format auto prints the rules of the net conf's backend; for backend auto it says which one this machine gets.
Without --pod-ips and --family, both families are printed; ADD programs those that the mesh wants for the pod's addresses.
Exit code 3: the pod would be left alone; standard error says why.`,
		Example: `  detourctl render --mesh osm --manifests testdata/demo/osm --pod shop/web --explain
  detourctl render --conf /etc/cni/net.d/10-net.conflist --manifests pods.yaml --pod shop/web
  detourctl render --mesh osm --manifests pods.yaml --pod shop/web --family 4 | iptables-restore --noflush --test`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.render(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.conf, "conf", "", "net conf, or conflist with detour in it")
	f.StringVar(&o.mesh, "mesh", "", "instead of --conf, the mesh: "+strings.Join(mesh.Names(), ", "))
	f.StringVar(&o.manifests, "manifests", "", "file or folder of YAML with the pod and the mesh's configuration")
	f.StringVar(&o.pod, "pod", "", "pod, as NAMESPACE/NAME")
	f.StringSliceVar(&o.podIPs, "pod-ips", nil, "the pod's addresses, which decide the families")
	f.IntVar(&o.family, "family", 0, "print only this family: 4 or 6")
	f.StringVar(&o.format, "format", "auto", "output format: auto, iptables, nft or json")
	f.BoolVar(&o.explain, "explain", false, "explain each rule in a comment ahead of it; nft's rules always have one")
	for _, name := range []string{"manifests", "pod"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	c.MarkFlagsOneRequired("conf", "mesh")
	c.MarkFlagsMutuallyExclusive("conf", "mesh")
	return c
}

func (o renderOptions) render(ctx context.Context, out, warnings io.Writer) error {
	conf, err := o.netConf()
	if err != nil {
		return err
	}
	addresses, err := o.addresses()
	if err != nil {
		return err
	}
	decision, err := o.decide(ctx, conf, addresses)
	if err != nil {
		return err
	}
	families, err := o.families(addresses, decision.Families)
	if err != nil {
		return err
	}
	for _, w := range decision.Warnings {
		fmt.Fprintln(warnings, "warning: "+plain(w))
	}
	if decision.Skip != "" {
		return codeError{exitUnknown, fmt.Errorf("pod %s is left alone: %s", o.pod, decision.Skip)}
	}
	switch o.format {
	case "json":
		return printJSON(out, jsonFamilies(decision.Rules, families))
	case "auto", "iptables", "nft":
		return o.printProgram(ctx, out, conf.Backend, decision.Rules, families)
	}
	return fmt.Errorf("--format: %q is none of auto, iptables, nft, json", o.format)
}

// printProgram prints the rules in the format's language; format auto has that of the net conf's backend.
func (o renderOptions) printProgram(ctx context.Context, out io.Writer, choice string, rs rules.Ruleset, families []rules.Family) error {
	switch o.format {
	case "iptables":
		choice = backend.IPTables
	case "nft":
		choice = backend.NFTables
	}
	program, err := backend.Prepare(ctx, choice, rs, families)
	if err != nil {
		return err
	}
	if choice == backend.Auto { // which iptables it is depends on the pod's namespace
		fmt.Fprintf(out, "# backend auto takes %s\n", program.Choice())
	}
	_, err = io.WriteString(out, program.Text(o.explain))
	return err
}

// netConf returns the net conf of --conf or --mesh, with --manifests as the source.
func (o renderOptions) netConf() (netconf.Conf, error) {
	entry := map[string]json.RawMessage{}
	if o.conf != "" {
		data, err := readConf(o.conf)
		if err != nil {
			return netconf.Conf{}, fmt.Errorf("--conf: %w", err)
		}
		if entry, err = netconf.Entry(data); err != nil {
			return netconf.Conf{}, fmt.Errorf("--conf %s: %w", o.conf, err)
		}
	} else {
		if _, ok := mesh.Find(o.mesh); !ok {
			return netconf.Conf{}, fmt.Errorf("--mesh: %q is none of %s", o.mesh, strings.Join(mesh.Names(), ", "))
		}
		entry["mesh"] = quoted(o.mesh)
	}
	delete(entry, "agentSocket")
	delete(entry, "kubeconfig")
	entry["manifests"] = quoted(o.manifests)
	data, err := json.Marshal(entry)
	if err != nil {
		return netconf.Conf{}, err
	}
	return netconf.Parse(data)
}

// maxConf is the most bytes that a net conf or conflist may have: more is some other file.
const maxConf = 1 << 20

func readConf(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConf+1))
	if err == nil && len(data) > maxConf {
		err = fmt.Errorf("%s is larger than 1 MiB", path)
	}
	return data, err
}

func quoted(s string) json.RawMessage {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // every string has its JSON
	}
	return data
}

func (o renderOptions) decide(ctx context.Context, conf netconf.Conf, addresses []netip.Addr) (decision.Decision, error) {
	id, err := podID(o.pod)
	if err != nil {
		return decision.Decision{}, fmt.Errorf("--pod: %w", err)
	}
	manifests, err := kube.NewManifests(conf.Manifests)
	if err != nil {
		return decision.Decision{}, err
	}
	objects, err := manifests.Lookup(ctx, kube.NewRequest(conf.Dialect, id))
	if err != nil {
		return decision.Decision{}, err
	}
	return conf.Decide(decision.Input{ID: id, Pod: objects.Pod, Config: objects.Config, ConfigAbsent: objects.ConfigAbsent, Addresses: addresses})
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

// families returns the families that the mesh wants for the addresses, or both without addresses, narrowed by --family.
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

func jsonFamilies(rs rules.Ruleset, families []rules.Family) []jsonFamily {
	all := []jsonFamily{}
	for _, f := range families {
		j := jsonFamily{Family: f, Rules: []jsonRule{}}
		for _, r := range iptext.For(rs, f).Rules {
			j.Rules = append(j.Rules, jsonRule{r.Chain.Table, r.Chain.Name, iptext.Print(r), r.Why})
		}
		all = append(all, j)
	}
	return all
}
