package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/conns"
	"github.com/detour-cni/detour/pkg/conns/envoy"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/snapshot"
	"github.com/detour-cni/detour/pkg/trace"
)

type connsOptions struct {
	output output
	live   liveOptions
	mesh   string
	proxy  redirect.Proxy // what is not 0 overrides the mesh's
	watch  bool
}

func connsCommand() *cobra.Command {
	var o connsOptions
	c := &cobra.Command{
		Use:   "conns (--pod NAMESPACE/NAME | --netns PATH)",
		Short: "Say where a pod's connections really went, and which of them the proxy swallowed",
		Long: `List the connections of a pod of this node: those that rules sent to the proxy, and whether the proxy passed them on; those
that went direct, and by which rule; the proxy's own. If the proxy is Envoy, its configuration says why. Needs root.
Exit code 1: the proxy swallowed connections. 3: of connections that reached the proxy it can't be told whether it passed them
on.`,
		Example: `  detourctl conns --pod shop/web
  detourctl conns --pod shop/web --watch`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), screenOf(c)) },
	}
	o.output.register(c)
	o.live.register(c)
	f := c.Flags()
	f.StringVar(&o.mesh, "mesh", "", "the pod's mesh (default: by the record, else by the ports at which its proxy listens)")
	f.Uint32Var(&o.proxy.UID, "proxy-uid", 0, "the proxy's user, if the net conf overrides the mesh's")
	f.Uint16Var(&o.proxy.Outbound, "outbound-port", 0, "the proxy's outbound listener, likewise")
	f.Uint16Var(&o.proxy.Inbound, "inbound-port", 0, "the proxy's inbound listener, likewise")
	f.Uint16Var(&o.proxy.DNS, "dns-port", 0, "the proxy's DNS listener, likewise")
	f.Uint16Var(&o.proxy.Admin, "admin-port", 0, "Envoy's admin port, likewise")
	f.BoolVarP(&o.watch, "watch", "w", false, "follow the connections until Ctrl-C")
	c.MarkFlagsOneRequired("pod", "netns")
	return c
}

// connsAnswer is the JSON of conns.
type connsAnswer struct {
	Pod   string `json:"pod,omitempty"`
	Netns string `json:"netns"`
	conns.Report
	// Envoy is empty if the proxy is Envoy, else why it is not taken for one.
	Envoy string `json:"envoy"`
}

func (o connsOptions) run(ctx context.Context, s screen) error {
	if err := o.output.check(); err != nil {
		return err
	}
	found, ns, err := o.live.open()
	if err != nil {
		return err
	}
	defer ns.Close()
	if o.mesh == "" && found.Record != nil {
		o.mesh = found.Record.Mesh
	}
	before, err := conns.Read(ns)
	if err != nil {
		return err
	}
	proxy, err := before.FindProxy(o.mesh, o.proxy)
	if err != nil {
		return err
	}
	config, err := askEnvoy(ctx, ns, proxy.Admin)
	if o.watch {
		return o.follow(ctx, s, ns, proxy, config)
	}
	a := connsAnswer{Pod: o.live.pod, Netns: found.Netns}
	if err != nil {
		a.Envoy = err.Error()
	}
	a.Report = before.Judge(proxy, config, ruleOf(ns))
	if o.output == "text" {
		a.print(s)
	} else if err := printJSON(s, a); err != nil {
		return err
	}
	return exitOf(a.Has)
}

// adminTime is how long Envoy's admin port may take.
const adminTime = 30 * time.Second

func askEnvoy(ctx context.Context, ns *netns.Pod, port uint16) (*envoy.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTime)
	defer cancel()
	return envoy.Ask(ctx, conns.Dialer(ns), port)
}

// follow prints what happens to connections, an object or a line each, until Ctrl-C.
func (o connsOptions) follow(ctx context.Context, s screen, ns *netns.Pod, proxy conns.Proxy, config *envoy.Config) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	w, err := conns.NewWatcher(ns)
	if err != nil {
		return err
	}
	defer w.Close()
	found := map[conns.Way]bool{}
	lines := json.NewEncoder(s)
	lines.SetEscapeHTML(false)
	var failed error
	err = w.Follow(ctx, proxy, config, ruleOf(ns), func(e conns.Event) {
		found[e.Way] = found[e.Way] || e.Event == conns.End && e.Listener != 0
		if o.output == "json" {
			failed = errors.Join(failed, lines.Encode(e))
		} else {
			_, err := fmt.Fprintln(s, s.styled(eventStyle(e), describeEvent(e)))
			failed = errors.Join(failed, err)
		}
		if failed != nil {
			stop()
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	return exitOf(func(w conns.Way) bool { return found[w] })
}

func eventStyle(e conns.Event) style {
	if e.Event == conns.Begin {
		return dim
	}
	return wayStyles[e.Way]
}

func describeEvent(e conns.Event) string {
	line := fmt.Sprintf("%s %-5s %s", e.Time.Format("15:04:05.000"), e.Event, describeConnection(e.Connection))
	if e.Why != "" && (e.Listener != 0 || e.Way == conns.Unknown) {
		line += "; " + e.Why
	}
	if e.Envoy != nil {
		line += "; " + e.Envoy.String()
	}
	if e.Advice != "" {
		line += "; to do: " + e.Advice
	}
	return line
}

// exitOf is the exit code for the ways that connections to the proxy took.
func exitOf(has func(conns.Way) bool) error {
	switch {
	case has(conns.Swallowed):
		return codeError{code: exitFinding}
	case has(conns.Unknown):
		return codeError{code: exitUnknown}
	}
	return nil
}

// ruleOf names the rule by which a connection goes direct, by a walk through the live rules. It is nil if they can't be read.
func ruleOf(ns *netns.Pod) conns.Rule {
	var live *trace.Namespace
	err := ns.Do(func() (err error) {
		live, err = snapshot.Read()
		return err
	})
	if err != nil {
		return nil
	}
	return func(c conns.Connection) string {
		p := trace.Packet{
			Direction: trace.Out, Protocol: traceProtocols[c.Protocol], Src: c.Original.Source, Dst: c.To(), UID: c.Owner.UID,
		}
		if c.Owner.GID != nil {
			p.GID = *c.Owner.GID
		}
		r, err := trace.Walk(live, p)
		if err != nil || len(r.Ways) != 1 || r.Ways[0].Verdict != trace.Accepted || r.Ways[0].At == nil || r.Ways[0].At.Rule == nil {
			return ""
		}
		return fmt.Sprintf("%s: %s", r.Ways[0].At.Rule, r.Ways[0].At.Rule.Text)
	}
}

// wayStyles say at a glance what became of a connection.
var wayStyles = map[conns.Way]style{
	conns.Onward: green, conns.Answered: green, conns.Swallowed: red, conns.Unknown: yellow, conns.ByProxy: dim, conns.Within: dim,
}

// shownConnections bounds how many connections are shown of each destination.
const shownConnections = 5

func (a connsAnswer) print(s screen) {
	fmt.Fprintln(s, s.styled(bold, a.head()))
	if len(a.Destinations) == 0 {
		fmt.Fprintln(s, "no connections")
	}
	for _, d := range a.Destinations {
		line := fmt.Sprintf("%s %s %s: %s", d.Direction, d.Protocol, d.To, d.Sentence)
		fmt.Fprintf(s, "\n%s\n", s.styled(wayStyles[d.Way], line))
		notes := []string{d.Why}
		if d.Envoy != nil && (d.Way == conns.Swallowed || d.Way == conns.Unknown) {
			notes = append(notes, d.Envoy.String())
		}
		if d.Advice != "" {
			notes = append(notes, "to do: "+d.Advice)
		}
		for _, note := range notes {
			if note != "" {
				fmt.Fprintf(s, "  %s\n", plain(note))
			}
		}
		all := slices.Concat(d.Connections, d.Onward)
		for _, c := range all[:min(len(all), shownConnections)] {
			fmt.Fprintf(s, "    %s\n", s.cut(describeConnection(c), 4))
		}
		if more := len(all) - shownConnections; more > 0 {
			fmt.Fprintf(s, "    ... and %d more; -o json has them all\n", more)
		}
	}
}

func (a connsAnswer) head() string {
	pod := a.Pod
	if pod == "" {
		pod = a.Netns
	}
	p := a.Proxy
	if len(p.Listening) == 0 {
		return pod + ": nothing listens at the ports of a proxy"
	}
	var ports, uids []string
	for _, port := range p.Listening {
		ports = append(ports, strconv.Itoa(int(port)))
	}
	for _, uid := range p.UIDs {
		uids = append(uids, strconv.Itoa(int(uid)))
	}
	head := fmt.Sprintf("%s: the proxy is user %s and listens at %s", pod, strings.Join(uids, ", "), strings.Join(ports, ", "))
	switch {
	case a.Envoy == "":
		head += "; it is Envoy"
	case !strings.HasPrefix(a.Envoy, envoy.ErrNotEnvoy.Error()):
		head += "; " + a.Envoy
	}
	return head
}

// ways says what became of a connection in its own line.
var ways = map[conns.Way]string{
	conns.Onward:    "to the proxy, and onward",
	conns.Swallowed: "to the proxy, and no further",
	conns.Answered:  "to the proxy, which answered",
	conns.Reached:   "to the proxy",
	conns.Direct:    "direct",
	conns.ByProxy:   "by the proxy",
	conns.Within:    "within the pod",
	conns.Unknown:   "not known",
}

// describeConnection is one line: who, to where, what came of it, since when it is idle.
func describeConnection(c conns.Connection) string {
	line := fmt.Sprintf("%s -> %s", c.Original.Source, c.To())
	if c.Listener != 0 {
		line += fmt.Sprintf(" -> port %d", c.Listener)
	}
	line += "  " + ways[c.Way]
	if c.Inferred {
		line += " (inferred)"
	}
	if c.State != "" {
		line += "  " + c.State
	}
	if c.Idle > 0 {
		line += fmt.Sprintf("  idle for %d s", c.Idle)
	}
	if c.Owner != nil && c.Owner.Process != nil {
		line += fmt.Sprintf("  %s (PID %d)", c.Owner.Process.Name, c.Owner.Process.PID)
	}
	if c.Rule != "" {
		line += "  by " + c.Rule
	}
	return line
}
