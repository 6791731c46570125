package conns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// mostListed bounds how many addresses a sentence lists.
const mostListed = 5

func list(all []netip.AddrPort) string {
	var words []string
	for _, a := range all[:min(len(all), mostListed)] {
		words = append(words, a.String())
	}
	text := strings.Join(words, ", ")
	if more := len(all) - mostListed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func count(n int, protocol string) string {
	noun := "connection"
	if protocol == "udp" {
		noun = "UDP flow"
	}
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// onwardTo says where connections went if not to where the client wanted, and what became of them there.
func onwardTo(d *Destination) string {
	left := d.Onward
	var notes []string
	if d.Direction == Out && !slices.ContainsFunc(left, func(c Connection) bool { return c.To() == d.To }) {
		var to []netip.AddrPort
		for _, c := range left {
			to = append(to, c.To())
		}
		slices.SortFunc(to, netip.AddrPort.Compare)
		notes = append(notes, "to "+list(slices.Compact(to)))
	}
	every := func(ok func(Connection) bool) bool {
		return !slices.ContainsFunc(left, func(c Connection) bool { return !ok(c) })
	}
	switch {
	case every(func(c Connection) bool { return c.State == "CLOSE" }):
		notes = append(notes, "which was refused or reset")
	case every(func(c Connection) bool { return !slices.Contains(c.Status, seenReply) }):
		notes = append(notes, "which has not answered")
	case len(left) < d.Reached && d.Protocol == "tcp":
		notes = append(notes, "HTTP connections may share one; others can't")
	}
	return strings.Join(notes, ", ")
}

// unlessRefused is the other possibility: connection tracking drops the entry of a connection whose first answer is a reset.
func unlessRefused(d *Destination) string {
	who := d.To.String()
	switch {
	case d.Envoy == nil || d.Envoy.Passes():
	case len(d.Envoy.Endpoints) > 0 || d.Envoy.Open:
		who = "an endpoint of Envoy's"
	default:
		return "Envoy's configuration says so"
	}
	return fmt.Sprintf("unless %s refused them: the kernel forgets a refused connection at once; --watch would see it", who)
}

func forgotten(idle int64, timeouts map[string]uint32) string {
	const then = "an onward connection that was reset is forgotten after %d s: connect again and look at once, or use --watch"
	if idle < 0 {
		return fmt.Sprintf("it is not known when the last packet came, and "+then, timeouts["CLOSE"])
	}
	return fmt.Sprintf("the last packet came %d s ago, and "+then, idle, timeouts["CLOSE"])
}

// describe puts the destination into a sentence, without a full stop, and says what to do.
func (d *Destination) describe(p Proxy) {
	reached := count(d.Reached, d.Protocol) + " reached the proxy"
	switch {
	case d.Reached == 0:
		d.Sentence = d.others()
		return
	case d.Way == Onward:
		d.Sentence = fmt.Sprintf("%s, %d left it", reached, len(d.Onward))
	case d.Way == Answered:
		d.Sentence = reached + ", which answered"
	case d.Way == Swallowed:
		d.Sentence = reached + ", none left it"
		d.Advice = advice(p, d)
	default:
		d.Sentence = reached + ", none is known that left it"
	}
	if others := d.others(); others != "" {
		d.Sentence += "; " + others
	}
}

// others counts the connections that did not reach the proxy.
func (d *Destination) others() string {
	var words []string
	for _, of := range []struct {
		n    int
		text string
	}{
		{d.Direct, "went direct"},
		{d.Within, "stayed within the pod"},
		{d.ByProxy, "made by the proxy itself"},
		{d.Unknown, "of unknown origin"},
	} {
		if of.n > 0 {
			words = append(words, count(of.n, d.Protocol)+" "+of.text)
		}
	}
	return strings.Join(words, ", ")
}
