package main

import (
	"fmt"
	"slices"
	"strings"
)

// lane is a way through the pod's chains, with the shorter ways that leave it.
type lane struct {
	Title string
	Stops []string
	// From is the stop at which the shorter ways part.
	From     int
	Bypasses []bypass // those that reach less far first
}

// bypass is a way from the lane's From to another of its stops.
type bypass struct {
	Text string
	To   int
}

const arrow = " --> "

// lanes are those that the scenario's connections take, with the mesh's own names.
func (s scenario) lanes() []lane {
	c := s.Chains
	out, in := fmt.Sprintf("proxy :%d", s.Proxy.Outbound), fmt.Sprintf("proxy :%d", s.Proxy.Inbound)
	into := lane{
		Title:    "Into the pod",
		Stops:    []string{"outside", "PREROUTING", c.Inbound, c.InboundRedirect, in, "app"},
		From:     2,
		Bypasses: []bypass{{"metrics and probes", 4}, {"excluded port", 5}},
	}
	lanes := []lane{
		{
			Title:    "Out of the pod",
			Stops:    []string{"app", "OUTPUT", c.Outbound, c.OutboundRedirect, out, "destination"},
			From:     2,
			Bypasses: []bypass{{fmt.Sprintf("excluded range or port, UID %d, localhost", s.Proxy.UID), 5}},
		},
		into,
	}
	if s.shows(outsider, inboundAs) {
		lanes = append(lanes, lane{
			Title: "Into a pod of mode TPROXY",
			Stops: []string{"outside", "PREROUTING", c.Inbound, "ISTIO_TPROXY", in, "app"},
			From:  2, Bypasses: into.Bypasses,
		})
	}
	if s.shows(sidecar, inbound) {
		lanes = append(lanes, lane{Title: "From the proxy to its own pod", Stops: []string{"proxy", "OUTPUT", c.Outbound, c.InboundRedirect, in, "app"}})
	}
	if s.shows(application, dnsAnswers) {
		stops := slices.Concat([]string{"app", "OUTPUT"}, s.DNSChains, []string{"proxy " + s.Proxy.DNS[0].String()})
		lanes = append(lanes, lane{Title: "DNS queries", Stops: stops})
	}
	return lanes
}

// draw returns the lane's lines, the title not among them:
//
//	app --> OUTPUT --> CHAIN --> destination
//	           |                      ^
//	           +-- text --------------+
func (l lane) draw() []string {
	if len(l.Bypasses) == 0 {
		return []string{strings.Join(l.Stops, arrow)}
	}
	middles := l.middles()
	from := middles[l.From]
	marks := canvas{}
	marks.put(from, "|")
	for _, b := range l.Bypasses {
		marks.put(middles[b.To], "^")
	}
	lines := []string{strings.Join(l.Stops, arrow), string(marks)}
	for i, b := range l.Bypasses {
		var c canvas
		to := middles[b.To]
		c.put(from, "+"+strings.Repeat("-", to-from-1)+"+")
		c.put(from+3, " "+b.Text+" ")
		for _, pending := range l.Bypasses[i+1:] {
			c.put(middles[pending.To], "|")
		}
		lines = append(lines, string(c))
	}
	return lines
}

// middles are the columns of the stops' middles.
func (l lane) middles() []int {
	var columns []int
	column := 0
	for _, stop := range l.Stops {
		columns = append(columns, column+len(stop)/2)
		column += len(stop) + len(arrow)
	}
	return columns
}

// canvas is a line that is written to at any column.
type canvas []byte

func (c *canvas) put(column int, text string) {
	if missing := column + len(text) - len(*c); missing > 0 {
		*c = append(*c, slices.Repeat([]byte(" "), missing)...)
	}
	copy((*c)[column:], text)
}
