package main

import (
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/advice"
	"github.com/detour-cni/detour/pkg/trace"
)

// picture draws the ways of a packet: each hook with its tables, each rule that the packet met, indented by the jumps that led to it.
type picture struct {
	screen
	hook  trace.Hook
	table *trace.Table
}

// drawnWays is how many ways are drawn; a Service may have a thousand endpoints.
const drawnWays = 4

func (p picture) print(r trace.Result, say string) error {
	fmt.Fprintln(p, p.styled(bold, r.Packet.String()))
	common := 0
	if len(r.Ways) > 1 {
		common = trace.CommonSteps(r.Ways)
	}
	first := r.Ways[0].Steps
	for _, s := range first[:len(first)-len(after(first, common))] {
		p.step(s)
	}
	for i, w := range r.Ways {
		if i == drawnWays {
			fmt.Fprintf(p, "\n... and %d more ways; -o json has them all\n", len(r.Ways)-i)
			break
		}
		way := p // each way begins where the common steps end
		if len(r.Ways) > 1 {
			fmt.Fprintf(p, "\n%s\n", p.styled(bold, fmt.Sprintf("with %s:", advice.Percent(w.Probability))))
		}
		way.way(w, common)
	}
	_, err := fmt.Fprintf(p, "\n%s\n", plain(say))
	return err
}

// way draws what follows the first steps of a way.
func (p *picture) way(w trace.Way, from int) {
	for _, s := range after(w.Steps, from) {
		p.step(s)
	}
	fmt.Fprintln(p, p.end(w))
	for _, o := range w.Outcomes {
		inner := *p
		fmt.Fprintln(p, p.styled(yellow, "if "+o.Assumes+":"))
		inner.way(o, len(w.Met()))
	}
}

// after are the steps behind the first n that were met.
func after(steps []trace.Step, n int) []trace.Step {
	for i, s := range steps {
		if n == 0 {
			return steps[i:]
		}
		if s.Missed == "" {
			n--
		}
	}
	return nil
}

// step draws one line, and ahead of it the hook and the table if they are new.
func (p *picture) step(s trace.Step) {
	if s.Chain == nil {
		p.routing(s)
		return
	}
	if s.Hook != p.hook || s.Chain.Table != p.table {
		p.hook, p.table = s.Hook, s.Chain.Table
		fmt.Fprintf(p, "%s %s\n", p.styled(bold, strings.ToUpper(string(s.Hook))), p.styled(dim, tableTitle(s.Chain.Table)))
	}
	p.rule(s)
}

func (p *picture) routing(s trace.Step) {
	p.hook, p.table = "", nil
	line := s.Text
	if s.Unknown != "" {
		line = fmt.Sprintf("%s (%s, say)", s.Unknown, s.Assumed)
	}
	fmt.Fprintln(p, p.styled(bold, p.cut(line, 0)))
}

func tableTitle(t *trace.Table) string {
	return fmt.Sprintf("%s %s (%s)", t.Family, t.Name, t.Origin)
}

// rule draws a rule or a policy: "*" if it matched, "-" if not, "?" if that is not known.
func (p *picture) rule(s trace.Step) {
	sign, as, why := "*", green, s.Effect
	switch {
	case s.Missed != "":
		sign, as, why = "-", dim, "no: "+s.Missed
	case s.Assumed != "":
		sign, as, why = "?", yellow, s.Unknown+": "+s.Assumed
	case s.Rule == nil:
		sign, as = "=", style("0")
	}
	at, text := s.Chain.Name, s.Text
	if s.Rule != nil {
		at, text = fmt.Sprintf("%s %d", s.Chain.Name, s.Rule.Number), s.Rule.Text
	}
	if s.Odds > 0 {
		text += " (" + advice.Percent(s.Odds) + ")"
	}
	indent := strings.Repeat("  ", s.Depth+1)
	line := p.cut(fmt.Sprintf("%s%s %s: %s", indent, sign, at, text), 0)
	fmt.Fprintln(p, p.styled(as, line))
	if s.Rule != nil && s.Rule.Comment != "" && s.Missed == "" && s.Assumed == "" {
		fmt.Fprintln(p, p.styled(dim, p.cut(fmt.Sprintf("%s    # %s", indent, s.Rule.Comment), 0)))
	}
	if why != "" {
		fmt.Fprintln(p, p.cut(fmt.Sprintf("%s    %s", indent, why), 0))
	}
}

// end is what becomes of the packet on a way.
func (p *picture) end(w trace.Way) string {
	text, as := string(w.Verdict), green
	switch w.Verdict {
	case trace.Dropped, trace.Rejected:
		as = red
	case trace.Unknown:
		as = yellow
	case trace.Redirected, trace.TProxied:
		text += fmt.Sprintf(" to port %d", w.Port)
	case trace.Accepted:
		text += fmt.Sprintf(": %s -> %s", orUnknown(trace.Endpoint(w.Packet.From)), orUnknown(trace.Endpoint(w.Packet.To)))
		if w.Packet.Interface != "" {
			text += " by " + w.Packet.Interface
		}
	}
	if w.Packet.Mark != 0 {
		text += fmt.Sprintf(", mark %#x", w.Packet.Mark)
	}
	return "=> " + p.styled(as, text)
}

func orUnknown(addr string) string {
	if addr == "" {
		return "(an address that is not known)"
	}
	return addr
}
