// Package conns says where the connections of a pod really went: to the proxy and onward, to the proxy and no further, or direct.
// It reads connection tracking, the sockets and the processes that hold them, and changes nothing.
package conns

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/detour-cni/detour/pkg/conns/envoy"
	"github.com/detour-cni/detour/pkg/sockets"
)

// Report is what became of all connections of a namespace.
type Report struct {
	Proxy        Proxy         `json:"proxy"`
	Destinations []Destination `json:"destinations"`
}

// Destination is what became of all connections to one address.
type Destination struct {
	Direction Direction      `json:"direction"`
	Protocol  string         `json:"protocol"`
	To        netip.AddrPort `json:"to"`
	// Way is what became of those that reached the proxy, or of all if none did.
	Way Way `json:"way"`
	// Reached counts the connections that the rules sent to the proxy, and the others are those that they did not.
	Reached int `json:"reached"`
	Direct  int `json:"direct"`
	Within  int `json:"within"`
	ByProxy int `json:"byProxy"`
	Unknown int `json:"unknown"`
	// Sentence says it in words, Why is how it is known, or why it is not.
	Sentence string `json:"sentence"`
	Why      string `json:"why,omitempty"`
	// Envoy is what Envoy says it does with such connections; nil if there is no Envoy.
	Envoy  *envoy.Answer `json:"envoy,omitempty"`
	Advice string        `json:"advice,omitempty"`
	// Connections are those to the address, Onward those that the proxy made to carry them.
	Connections []Connection `json:"connections"`
	Onward      []Connection `json:"onward,omitempty"`

	listener uint16 // of those that reached the proxy
}

// Rule names the rule that lets a connection pass by the proxy; "" if that can't be told.
type Rule func(Connection) string

// Judge says where all connections went. e is nil without an Envoy, and rule nil if rules can't be named.
func (s Snapshot) Judge(p Proxy, e *envoy.Config, rule Rule) Report {
	j := judge{Snapshot: s, proxy: p, envoy: e, all: s.classify(p)}
	for i, c := range j.all {
		if rule != nil && c.Way == Direct && c.Direction == Out {
			j.all[i].Rule = rule(c)
		}
	}
	r := Report{p, append([]Destination{}, j.destinations()...)}
	slices.SortStableFunc(r.Destinations, func(a, b Destination) int { return cmp.Compare(a.urgency(), b.urgency()) })
	return r
}

// Has reports whether some connections that reached the proxy went this way.
func (r Report) Has(w Way) bool {
	return slices.ContainsFunc(r.Destinations, func(d Destination) bool { return d.Way == w && d.Reached > 0 })
}

// urgency sorts what a reader looks for to the front.
func (d Destination) urgency() int {
	switch {
	case d.Way == Swallowed:
		return 0
	case d.Way == Unknown && d.Reached > 0:
		return 1
	case d.Reached > 0:
		return 2
	}
	return 3
}

type judge struct {
	Snapshot
	proxy Proxy
	envoy *envoy.Config
	all   []Connection
}

// destinations groups the connections: first those that reached the proxy, with those that carry them, then the others.
func (j judge) destinations() []Destination {
	type place struct {
		direction Direction
		protocol  string
		to        netip.AddrPort
	}
	var out []Destination
	index := map[place]int{}
	find := func(c Connection) *Destination {
		at := place{c.Direction, c.Protocol, c.To()}
		i, ok := index[at]
		if !ok {
			i, index[at] = len(out), len(out)
			out = append(out, Destination{Direction: at.direction, Protocol: at.protocol, To: at.to})
		}
		return &out[i]
	}
	for _, c := range j.all {
		if c.reached() {
			find(c).add(c)
		}
	}
	carriers := map[flowKey]bool{}
	for i := range out {
		j.decide(&out[i])
		for _, c := range out[i].Onward {
			carriers[c.key()] = true
		}
	}
	for _, c := range j.all {
		if !c.reached() && !carriers[c.key()] {
			find(c).add(c)
		}
	}
	for i := range out {
		out[i].describe(j.proxy)
	}
	return out
}

func (d *Destination) add(c Connection) {
	d.Connections = append(d.Connections, c)
	switch {
	case c.reached():
		d.Reached++
		d.listener = c.Listener
	case c.Way == Direct:
		d.Direct++
	case c.Way == Within:
		d.Within++
	case c.Way == ByProxy:
		d.ByProxy++
	default:
		d.Unknown++
	}
	if d.Reached == 0 {
		d.Way, d.Why = c.Way, c.Why
	}
}

// decide says what became of the connections that reached the proxy.
func (j judge) decide(d *Destination) {
	j.ask(d)
	for i := range j.all {
		if j.claim(d, &j.all[i]) {
			d.Onward = append(d.Onward, j.all[i])
		}
	}
	d.Way, d.Why = j.verdict(d)
	for i := range d.Connections {
		d.Connections[i].Way = d.Way
	}
}

// ask adds what Envoy says about the destination.
func (j judge) ask(d *Destination) {
	if j.envoy == nil || d.Protocol != "tcp" {
		return
	}
	if answer, ok := j.envoy.Explain(d.To, d.listener); ok {
		d.Envoy = &answer
	}
}

// claim reports whether the proxy made the connection to carry those to d. The rules redirect what the application sends there:
// one whose socket is gone can be only the proxy's.
func (j judge) claim(d *Destination, c *Connection) bool {
	if !j.carries(d, *c) {
		return false
	}
	if c.Way == Unknown {
		c.Way, c.Inferred, c.fromProxy = ByProxy, true, true
		c.Why = "its socket is gone; it goes where the proxy passes connections on to"
	}
	return c.fromProxy
}

// carries reports whether a connection that the proxy made may carry one to the destination.
func (j judge) carries(d *Destination, c Connection) bool {
	switch {
	case c.Protocol != d.Protocol:
		return false
	case d.Direction == In:
		return c.Direction == In && !c.reached() && c.To().Port() == d.To.Port() && c.To().Addr().Is4() == d.To.Addr().Is4()
	case slices.Contains(j.proxy.DNS, d.listener):
		return c.To().Port() == d.To.Port()
	case d.Envoy != nil && slices.Contains(d.Envoy.Endpoints, c.To()):
		return true
	}
	return c.To() == d.To
}

func (j judge) verdict(d *Destination) (Way, string) {
	switch {
	case len(d.Onward) > 0:
		return Onward, onwardTo(d)
	case !j.listens(d.Protocol, d.listener):
		return Swallowed, "nothing listens at the proxy's port " + strconv.Itoa(int(d.listener))
	case slices.Contains(j.proxy.DNS, d.listener):
		return dnsVerdict(d)
	case d.Envoy != nil && d.Envoy.Drops():
		return Swallowed, "Envoy's configuration says so"
	}
	if elsewhere := j.elsewhere(d); len(elsewhere) > 0 {
		return Unknown, "the proxy may have carried them by its connections to " + list(elsewhere)
	}
	if idle, ok := j.fresh(d); !ok {
		return Unknown, forgotten(idle, j.timeouts)
	}
	return Swallowed, unlessRefused(d)
}

func dnsVerdict(d *Destination) (Way, string) {
	if slices.ContainsFunc(d.Connections, func(c Connection) bool { return slices.Contains(c.Status, seenReply) }) {
		return Answered, "the proxy answered by itself"
	}
	return Unknown, "the proxy has neither answered nor asked further yet"
}

// fresh reports whether an onward connection would still be known had there been one: a connection that is reset is forgotten
// first. It returns for how long the latest connection has been idle.
func (j judge) fresh(d *Destination) (idle int64, ok bool) {
	idle = -1
	for _, c := range d.Connections {
		if c.reached() && c.Idle >= 0 && (idle < 0 || c.Idle < idle) {
			idle = c.Idle
		}
	}
	return idle, idle >= 0 && idle <= int64(j.timeouts["CLOSE"])
}

// elsewhere are the destinations of the proxy's connections that may carry those to d although they go somewhere else. If Envoy
// says where it passes them on to, there are none.
func (j judge) elsewhere(d *Destination) []netip.AddrPort {
	if d.Envoy != nil && !d.Envoy.Open {
		return nil
	}
	known := map[netip.AddrPort]bool{}
	for _, c := range j.all {
		known[c.To()] = known[c.To()] || c.reached()
	}
	var all []netip.AddrPort
	for _, c := range j.all {
		if j.maybeElsewhere(d, c) && !known[c.To()] {
			all = append(all, c.To())
		}
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// maybeElsewhere reports whether the proxy may carry connections to d by this one although it goes somewhere else.
func (j judge) maybeElsewhere(d *Destination, c Connection) bool {
	maybe := c.fromProxy || c.Way == Unknown && !c.reached()
	return maybe && c.Direction == d.Direction && c.Protocol == d.Protocol && !j.byOther(c)
}

// byOther reports whether the connection was made by a process of the proxy's user that is not the proxy, such as istio's agent.
func (j judge) byOther(c Connection) bool {
	if c.Owner == nil || c.Owner.Process == nil || len(j.proxy.Processes) == 0 {
		return false
	}
	return !slices.ContainsFunc(j.proxy.Processes, func(p sockets.Process) bool { return p.PID == c.Owner.Process.PID })
}
