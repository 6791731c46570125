package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/advice"
	"github.com/detour-cni/detour/pkg/livetrace"
	"github.com/detour-cni/detour/pkg/snapshot"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/iptsave"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

type traceOptions struct {
	output output
	packet packetOptions
	files  fileOptions
	live   liveOptions
	follow bool
	wait   time.Duration
}

func traceCommand() *cobra.Command {
	var o traceOptions
	c := &cobra.Command{
		Use:   "trace (--pod NAMESPACE/NAME | --netns PATH | --node | FILES) (--out | --in IFACE) --to IP:PORT",
		Short: "Say where a packet goes, and which rule decides",
		Long: `Walk a packet through the netfilter hooks of a network namespace as the kernel does. Without --live, nothing is sent.
The rules and routes are those of a pod on this node, of the node itself, or of the files of a bug report.
Exit code 1: the packet is dropped or rejected on some way. 3: on some way it is not known what happens.`,
		Example: `  detourctl trace --pod shop/web --out --to 10.0.0.6:7000
  detourctl trace --node --in flannel.1 --from 10.224.0.0 --to 10.224.2.16:80
  detourctl trace --iptables-save rules.txt --addr addr.json --out --to 10.96.0.10:53 --proto udp`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), screenOf(c)) },
	}
	o.output.register(c)
	o.packet.register(c)
	o.files.register(c)
	o.live.register(c)
	o.live.registerNode(c)
	c.Flags().BoolVar(&o.follow, "live", false, "send the packet, or with --in wait for it, and print the way that the kernel says it took")
	c.Flags().DurationVar(&o.wait, "wait", 30*time.Second, "with --live, how long to wait for the packet")
	for _, file := range []string{"iptables-save", "ip6tables-save", "nft", "ipset", "route", "addr", "rule"} {
		c.MarkFlagsMutuallyExclusive("pod", "netns", "node", file)
	}
	c.MarkFlagsOneRequired("pod", "netns", "node", "iptables-save", "ip6tables-save", "nft")
	return c
}

func (o traceOptions) run(ctx context.Context, s screen) error {
	if err := o.output.check(); err != nil {
		return err
	}
	p, err := o.packet.packet()
	if err != nil {
		return err
	}
	switch {
	case o.follow && !o.live.given():
		return errors.New("--live needs a live namespace: --pod, --netns or --node")
	case o.follow && o.wait <= 0:
		return fmt.Errorf("--wait: %s is no time to wait", o.wait)
	case o.follow:
		return o.followLive(ctx, s, p)
	case o.live.given():
		ns, r, err := o.live.walk(p)
		if err != nil {
			return err
		}
		return answer(s, o.output, ns, r)
	}
	ns, err := o.files.namespace(p)
	if err != nil {
		return err
	}
	if err := knownInterfaces(ns, p); err != nil {
		return err
	}
	r, err := trace.Walk(ns, p)
	if err != nil {
		return err
	}
	return answer(s, o.output, ns, r)
}

// followLive prints the way that the kernel says the packet took.
func (o traceOptions) followLive(ctx context.Context, s screen, p trace.Packet) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM)
	defer stop()
	var ns *trace.Namespace
	var r trace.Result
	err := o.live.do(func() (err error) {
		if ns, err = snapshot.Read(); err != nil {
			return err
		}
		if err := knownInterfaces(ns, p); err != nil {
			return err
		}
		r, err = livetrace.Follow(ctx, ns, p, o.wait, func() {
			if p.Direction == trace.In {
				fmt.Fprintf(errorStream(), "waiting for %s, at most %s\n", plain(p.String()), o.wait)
			}
		})
		return err
	})
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted before the packet was through")
	case err != nil:
		return err
	}
	return answer(s, o.output, ns, r)
}

// knownInterfaces refuses a packet of an interface that the namespace does not have.
func knownInterfaces(ns *trace.Namespace, p trace.Packet) error {
	if !ns.Routing.LinksKnown {
		return nil
	}
	var names []string
	for _, l := range ns.Routing.Links {
		names = append(names, l.Name)
	}
	for _, f := range []struct{ flag, name string }{{"--in", p.Interface}, {"--to-iface", p.ToInterface}} {
		if f.name != "" && !slices.Contains(names, f.name) {
			return fmt.Errorf("%s: there is no interface %q, only %s", f.flag, f.name, strings.Join(names, ", "))
		}
	}
	return nil
}

// answer prints where the packet goes.
func answer(s screen, as output, ns *trace.Namespace, r trace.Result) (err error) {
	say := advice.Of(ns, r)
	if as == "json" {
		err = printJSON(s, jsonOf(r, say))
	} else {
		err = picture{screen: s}.print(r, say)
	}
	if err != nil {
		return err
	}
	return verdictError(r.Ways)
}

// verdictError is the exit code of the ways.
func verdictError(ways []trace.Way) error {
	code := 0
	for _, w := range ways {
		switch w.Verdict {
		case trace.Dropped, trace.Rejected:
			return codeError{code: exitFinding}
		case trace.Unknown:
			code = exitUnknown
		case trace.Accepted, trace.Redirected, trace.TProxied:
		}
	}
	if code != 0 {
		return codeError{code: code}
	}
	return nil
}

// fileOptions are the files of a bug report.
type fileOptions struct {
	iptables, ip6tables []string
	nft, ipset          string
	route, addr, rule   string
}

func (o *fileOptions) register(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&o.iptables, "iptables-save", nil, "`FILE` with the output of iptables-save (again for that of iptables-legacy-save)")
	f.StringArrayVar(&o.ip6tables, "ip6tables-save", nil, "`FILE` with the output of ip6tables-save")
	f.StringVar(&o.nft, "nft", "", "`FILE` with the output of nft -j list ruleset")
	f.StringVar(&o.ipset, "ipset", "", "`FILE` with the output of ipset save")
	f.StringVar(&o.route, "route", "", "`FILE` with the output of ip -j route show table all")
	f.StringVar(&o.addr, "addr", "", "`FILE` with the output of ip -j addr")
	f.StringVar(&o.rule, "rule", "", "`FILE` with the output of ip -j rule")
}

func (o fileOptions) namespace(p trace.Packet) (*trace.Namespace, error) {
	ns := &trace.Namespace{}
	if o.nft == "" {
		if len(o.iptables)+len(o.ip6tables) == 0 {
			return nil, errors.New("--pod, --netns or --nft is empty")
		}
		if p.Dst.Addr().Is4() && len(o.iptables) == 0 {
			return nil, errors.New("the packet is IPv4, but --ip6tables-save has the rules of IPv6: add --iptables-save")
		}
		if p.Dst.Addr().Is6() && len(o.ip6tables) == 0 {
			return nil, errors.New("the packet is IPv6, but --iptables-save has the rules of IPv4: add --ip6tables-save")
		}
	}
	sets, err := o.sets()
	if err != nil {
		return nil, err
	}
	for _, path := range o.iptables {
		if err := readTables(ns, "--iptables-save", path, trace.IP, sets); err != nil {
			return nil, err
		}
	}
	for _, path := range o.ip6tables {
		if err := readTables(ns, "--ip6tables-save", path, trace.IP6, sets); err != nil {
			return nil, err
		}
	}
	if o.nft != "" {
		data, err := readFile("--nft", o.nft)
		if err != nil {
			return nil, err
		}
		tables, err := nftjson.Read(data)
		if err != nil {
			return nil, fmt.Errorf("--nft %s: %w", o.nft, err)
		}
		ns.Tables = append(ns.Tables, tables...)
	}
	ns.Routing, err = o.routing()
	return ns, err
}

func (o fileOptions) routing() (r trace.Routing, err error) {
	var data [3][]byte
	for i, file := range []struct{ flag, path string }{{"--route", o.route}, {"--addr", o.addr}, {"--rule", o.rule}} {
		if file.path == "" {
			continue
		}
		if data[i], err = readFile(file.flag, file.path); err != nil {
			return r, err
		}
	}
	r, err = routes.Read(data[0], data[1], data[2])
	if err != nil {
		return r, fmt.Errorf("read the routing of --route, --addr and --rule: %w", err)
	}
	return r, nil
}

func (o fileOptions) sets() (map[string]*iptsave.IPSet, error) {
	if o.ipset == "" {
		return nil, nil
	}
	data, err := readFile("--ipset", o.ipset)
	if err != nil {
		return nil, err
	}
	sets, err := iptsave.ReadSets(data)
	if err != nil {
		return nil, fmt.Errorf("--ipset %s: %w", o.ipset, err)
	}
	return sets, nil
}

func readTables(ns *trace.Namespace, flag, path string, f trace.Family, sets map[string]*iptsave.IPSet) error {
	data, err := readFile(flag, path)
	if err != nil {
		return err
	}
	tables, err := iptsave.Read(data, f, iptsave.Unnamed, sets)
	if err != nil {
		return fmt.Errorf("%s %s: %w", flag, path, err)
	}
	ns.Tables = append(ns.Tables, tables...)
	return nil
}

// maxFile is the most bytes that a file of a bug report may have.
const maxFile = 256 << 20

func readFile(flag, path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", flag, err)
	case len(data) > maxFile:
		return nil, fmt.Errorf("%s: %s is larger than %d MiB", flag, path, maxFile>>20)
	case len(strings.TrimSpace(string(data))) == 0:
		return nil, fmt.Errorf("%s: %s is empty", flag, path)
	}
	return data, nil
}
