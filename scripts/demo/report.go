package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/mesh"
)

// report prints what the demo shows, in at most 100 columns.
type report struct {
	out   io.Writer
	color bool
}

// newReport uses colors on a terminal, unless NO_COLOR says no (no-color.org).
func newReport(out *os.File) report {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return report{out, err == nil && os.Getenv("NO_COLOR") == ""}
}

// style is an ANSI code.
type style string

const (
	bold  style = "1"
	dim   style = "2"
	red   style = "1;31"
	green style = "32"
)

func (r report) paint(s style, text string) string {
	if !r.color || s == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

func (r report) printf(format string, args ...any) { fmt.Fprintf(r.out, format, args...) }

func (r report) title(text string) { r.printf("\n%s\n", r.paint(bold, text)) }

// heading says what the demo is about before anything can go wrong.
func (r report) heading(s scenario) {
	r.printf("%s\n", r.paint(bold, "detour demo: real connections, and where the rules for mesh "+s.Mesh+" send them"))
}

// stage shows the networks and what detour said of each pod.
func (r report) stage(s *stage, adds []logLine) {
	outside, web, batch := s.outsideAddress, s.hosts[webPod], s.hosts[batchPod]
	r.title("The networks, each in a namespace of its own")
	const pod = "+--- pod %-11s %-10s %-8s %s\n"
	r.printf("  outside %-10s --- node's bridge ---"+pod, outside[0], s.scenario.Meshed, web[0], web[1], "app and proxy")
	r.printf("          %-10s %21s|\n", outside[1], "")
	r.printf("%42s"+pod, "", s.scenario.Plain, batch[0], batch[1], "app")

	r.title("cnitool add: bridge, host-local, detour")
	for _, add := range adds {
		r.printf("  %-11s %s\n", add.Pod, add)
	}
	if len(adds) == 0 {
		r.printf("  detour logged nothing\n")
	}
}

// ways draws how connections may go.
func (r report) ways(d mesh.Dialect) {
	for _, l := range lanes(d) {
		r.title(l.Title)
		for _, line := range l.draw() {
			r.printf("  %s\n", line)
		}
	}
}

const tableLine = "  %-30s%-3s%-24s%s%s%s\n"

// tableHead names the columns and says what "seen" is.
func (r report) tableHead() {
	r.printf("\n"+tableLine, "connection", "", "to", r.cell("", "expected"), "seen", "")
	example := way{outboundPort, atOutside}.answer(netip.AddrPortFrom(outsideHosts[server][0], 80))
	r.printf("  %s\n  %s\n", r.paint(dim, "seen is what the client was answered, if all of it is right; in full for example"), r.paint(dim, example))
}

// cell pads first and paints then: the codes have no width.
func (r report) cell(s style, text string) string { return r.paint(s, fmt.Sprintf("%-19s", text)) }

// section prints a part of the table.
func (r report) section(title string, results []result) {
	r.title(title)
	last := ""
	for _, res := range results {
		name := res.Name
		if name == last {
			name = ""
		}
		last = res.Name
		mark, s := "✓", green
		if !res.OK() {
			mark, s = "✗", red
		}
		r.printf(tableLine, name, res.Family(), res.Dst, r.cell("", res.Want.String()), r.cell(s, res.Seen()), r.paint(s, mark))
	}
}

// summary counts, repeats in full what differs, and says how to look further.
func (r report) summary(o options, results, differ []result, adds []logLine, took time.Duration) {
	if len(differ) == 0 {
		r.title(fmt.Sprintf("%d connections, all of them where they should be.", len(results)))
	} else {
		r.title(r.paint(red, fmt.Sprintf("%d connections, and %d of them not where they should be:", len(results), len(differ))))
	}
	for _, d := range differ {
		r.printf("  %s from %s: %s, %s\n      expected  %s\n      seen      %s\n", r.paint(red, "✗"), d.From, d.Name, d.Dst, d.Want.answer(d.Dst), d.Answer)
	}
	for _, add := range adds {
		if add.Rules > 0 {
			r.printf("ADD of detour took %.1f ms for pod %s, the demo %.1f s in all.\n", add.MS.Total, add.Pod, took.Seconds())
		}
	}
	r.printf("The namespaces are gone again. The pod's rules, each with its reason:\n")
	r.printf("  bin/detourctl render --mesh %s --manifests %s --pod %s --explain\n", o.scenario.Mesh, o.manifests, o.scenario.Meshed)
}
