package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/probe"
	"github.com/detour-cni/detour/pkg/rules"
)

// exitBroken says that redirection does not work.
const exitBroken = 95

// The users of the meshes' proxies. istio redirects its proxy's calls to its own pod in every version.
const (
	osmUID   = 1500
	istioUID = 1337
)

type probeOptions struct {
	output   output
	live     liveOptions
	family   int
	to       string
	outbound uint16
	inbound  []uint
	proxyUID uint32
}

func probeCommand() *cobra.Command {
	var o probeOptions
	c := &cobra.Command{
		Use:   "probe [--pod NAMESPACE/NAME | --netns PATH]",
		Short: "Prove by connections that redirection works",
		Long: `Prove by connections that a pod's redirection works, in each of its address families: in an init container before the proxy runs,
with the probe in the proxy's place; later, by what the proxy accepts. It ends within 5 seconds.
Inside a pod it needs no privilege. There it can prove outbound redirection, and as the proxy's user inbound redirection where the mesh
redirects the proxy's calls to its own pod. On the node, with --pod, it proves both, and needs root.
Exit code 95: redirection does not work.`,
		Example: `  detourctl probe
  detourctl probe --pod shop/web
  detourctl probe --family 4`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), screenOf(c)) },
	}
	o.output.register(c)
	o.live.register(c)
	f := c.Flags()
	f.IntVar(&o.family, "family", 0, "test only this address family, 4 or 6, if the mesh leaves the other alone")
	f.StringVar(&o.to, "to", "", "begin the outbound connection to this IP:PORT, if the mesh does not redirect "+probe.Nowhere[rules.IPv4].String())
	f.Uint16Var(&o.outbound, "outbound-port", 15001, "the proxy's outbound listener")
	f.UintSliceVar(&o.inbound, "inbound-port", []uint{15003, 15006}, "the proxy's inbound listener")
	f.Uint32Var(&o.proxyUID, "proxy-uid", 0, "the proxy's user (default: 1500 and 1337)")
	return c
}

func (o probeOptions) run(ctx context.Context, s screen) error {
	if err := o.output.check(); err != nil {
		return err
	}
	p, err := o.probe()
	if err != nil {
		return err
	}
	found := p.Run(ctx)
	if o.output == "json" {
		err = printJSON(s, map[string]any{"findings": found})
	} else {
		err = printFindings(s, found)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(found, func(f probe.Finding) bool { return f.Result == probe.Broken }) {
		return codeError{code: exitBroken}
	}
	return nil
}

func (o probeOptions) probe() (p probe.Probe, err error) {
	p = probe.Probe{OutboundPort: o.outbound, To: probe.Nowhere, AsProxy: o.asProxy(), SelfCalls: os.Getuid() == istioUID, In: here}
	if o.outbound == 0 {
		return p, errors.New("--outbound-port: a port is 1 to 65535")
	}
	for _, port := range o.inbound {
		if port == 0 || port > 65535 {
			return p, fmt.Errorf("--inbound-port: %d is no port: a port is 1 to 65535", port)
		}
		p.InboundPorts = append(p.InboundPorts, uint16(port))
	}
	if o.to != "" {
		to, err := netip.ParseAddrPort(o.to)
		if err != nil {
			return p, fmt.Errorf("--to: %q is not IP:PORT", o.to)
		}
		p.To = map[rules.Family]netip.AddrPort{rules.Of(to.Addr()): to}
		o.family = int(rules.Of(to.Addr()))
	}
	if o.family != 0 && !slices.Contains(rules.Families, rules.Family(o.family)) {
		return p, fmt.Errorf("--family: %d is neither 4 nor 6", o.family)
	}
	if o.live.given() {
		p.In, p.Outside, p.AsProxy = o.live.do, here, false
	}
	err = p.In(func() (err error) {
		p.Addresses, err = o.addresses()
		return err
	})
	return p, err
}

func here(f func() error) error { return f() }

// asProxy reports whether this process has the proxy's user.
func (o probeOptions) asProxy() bool {
	uid := os.Getuid()
	if o.proxyUID != 0 {
		return uid == int(o.proxyUID)
	}
	return uid == osmUID || uid == istioUID
}

// addresses are those of the calling thread's namespace by which others reach it.
func (o probeOptions) addresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() || o.family != 0 && rules.Of(p.Addr()) != rules.Family(o.family) {
			continue
		}
		out = append(out, p.Addr().Unmap())
	}
	if len(out) == 0 {
		return nil, errors.New("the pod has no address to test: run the probe in a pod, or name one with --pod")
	}
	return out, nil
}

var resultStyles = map[probe.Result]style{probe.Works: green, probe.Broken: red, probe.Unproven: yellow}

func printFindings(s screen, found []probe.Finding) error {
	table := tabwriter.NewWriter(s, 0, 0, 2, ' ', 0)
	for _, f := range found {
		fmt.Fprintf(table, "IPv%d\t%s\t%s\t%s\n", f.Family, f.Direction, s.styled(resultStyles[f.Result], string(f.Result)), plain(f.Detail))
	}
	return table.Flush()
}
