package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
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
	r.title("The networks, each in a namespace of its own")
	pods := s.scenario.Pods
	width := 0
	for _, pod := range pods {
		width = max(width, len(pod.ID.String()))
	}
	for i, pod := range pods {
		left, own := "", s.hosts[pod.Host]
		if i == 0 {
			left = fmt.Sprintf("outside %-10s --- node's bridge ---", s.hosts[outside][0])
		}
		holds := "app and proxy"
		if pod.Sidecar == noSidecar {
			holds = "app"
		}
		r.printf("  %-40s+--- pod %-*s %-10s %-8s %s\n", left, width, pod.ID, own[0], own[1], holds)
		if i == 0 {
			r.printf("  %-40s|\n", fmt.Sprintf("        %s", s.hosts[outside][1]))
		}
	}

	r.title("cnitool add: bridge, host-local, detour")
	for _, add := range adds {
		r.printf("  %-*s  %s\n", width, add.Pod, add)
	}
	if len(adds) == 0 {
		r.printf("  detour logged nothing\n")
	}
}

// ways draws how connections may go.
func (r report) ways(s scenario) {
	for _, l := range s.lanes() {
		r.title(l.Title)
		for _, line := range l.draw() {
			r.printf("  %s\n", line)
		}
	}
}

const cellWidth = 19

const tableLine = "  %-30s%-3s%-24s%s%s%s\n"

// tableHead names the columns and says what "seen" is.
func (r report) tableHead() {
	r.printf("\n"+tableLine, "connection", "", "to", r.cell("", "expected"), "seen", "")
	r.printf("  %s\n", r.paint(dim, "seen: where the connection went, by the answer that the client got"))
}

// cell pads first and paints then: the codes have no width.
func (r report) cell(s style, text string) string {
	return r.paint(s, fmt.Sprintf("%-*s", cellWidth, text))
}

// section prints a part of the table.
func (r report) section(sec section, results []result) {
	r.title(sec.Title)
	if sec.Note != "" {
		r.printf("  %s\n", r.paint(dim, sec.Note+" The first answer in full:"))
		r.printf("  %s\n", r.paint(dim, results[0].Answer))
	}
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
		seen := res.Seen()
		if len(seen) >= cellWidth {
			seen = "other, see below"
		}
		r.printf(tableLine, name, res.Family(), res.Dst, r.cell("", res.Proxy.text(res.Want)), r.cell(s, seen), r.paint(s, mark))
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
		r.printf("  %s from %s: %s, %s\n      want %s\n      seen %s\n", r.paint(red, "✗"), d.From.Name, d.Name, d.Dst, d.answer(d.Want), d.Answer)
	}
	for _, add := range adds {
		if add.Rules > 0 {
			r.printf("ADD of detour took %.1f ms for pod %s.\n", add.MS.Total, add.Pod)
		}
	}
	r.printf("The demo took %.1f s, and the namespaces are gone again. A pod's rules, each with its reason:\n", took.Seconds())
	for _, pod := range o.scenario.Pods {
		if pod.Sidecar != noSidecar {
			r.printf("  bin/detourctl render --mesh %s --manifests %s --pod %s --explain\n", o.scenario.Mesh, o.folder(), pod.ID)
		}
	}
}
