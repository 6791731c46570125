package conns

import (
	"cmp"
	"net/netip"
	"slices"
)

// Way is where a connection really went.
type Way string

// The ways.
const (
	Onward    Way = "onward"    // to the proxy, which passed it on
	Swallowed Way = "swallowed" // to the proxy, and no further
	Answered  Way = "answered"  // a DNS query, which the proxy answered itself
	Direct    Way = "direct"    // past the proxy
	ByProxy   Way = "by-proxy"  // made by the proxy itself
	Within    Way = "within"    // within the pod, past the proxy
	Unknown   Way = "unknown"
	Reached   Way = "reached" // to the proxy, which may still pass it on; only at the begin of an Event
)

// Direction is which way a connection was opened, as seen from the pod.
type Direction string

// The directions.
const (
	Out Direction = "out"
	In  Direction = "in"
)

// Connection is an entry of connection tracking and what became of it.
type Connection struct {
	Flow
	Direction Direction `json:"direction"`
	Way       Way       `json:"way"`
	// Why is how Way is known, or why it is not.
	Why string `json:"why,omitempty"`
	// Inferred says that Way follows from where the proxy passes connections on to: the socket of this one is gone.
	Inferred bool `json:"inferred,omitempty"`
	// Listener is the proxy's port to which rules sent the connection; 0 if they did not.
	Listener uint16 `json:"listener,omitempty"`
	TProxy   bool   `json:"tproxy,omitempty"` // sent there by TPROXY, without NAT
	// Owner holds the pod's socket: of a connection to the pod the accepting one, else the one that dialed. Nil if it is gone.
	Owner *Owner `json:"owner,omitempty"`
	// Idle is for how many seconds no packet has been seen, -1 if that is not known.
	Idle int64 `json:"idle"`
	// Rule is what decided that a connection went direct.
	Rule string `json:"rule,omitempty"`

	fromProxy bool // the proxy made it
}

// To is where the client wanted to go.
func (c Connection) To() netip.AddrPort { return c.Original.Destination }

// reached reports whether the rules sent the connection to the proxy.
func (c Connection) reached() bool { return c.Listener != 0 }

// istioClientMark is what istio's rules of mode TPROXY mark the connections with that the proxy makes in its client's name. Those
// of the clients themselves have no mark.
const istioClientMark = 1337

// classify says of every connection what can be told of it alone.
func (s Snapshot) classify(p Proxy) []Connection {
	var all []Connection
	for _, f := range s.flows {
		c := Connection{Flow: f, Idle: s.idle(f), Way: Unknown}
		switch from, to := s.local(f.Original.Source.Addr()), s.local(f.Original.Destination.Addr()); {
		case s.redirected(p, f, &c):
		case from && to:
			s.within(p, &c)
		case to:
			s.incoming(p, &c)
		default:
			s.outgoing(p, &c)
		}
		c.fromProxy = c.fromProxy || c.Way == ByProxy
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Connection) int {
		return cmp.Or(a.To().Compare(b.To()), a.Original.Source.Compare(b.Original.Source), cmp.Compare(a.Zone, b.Zone))
	})
	return all
}

// redirected recognises what NAT sent to a listener of the proxy. The Why of those is decided by destination, later.
func (s Snapshot) redirected(p Proxy, f Flow, c *Connection) bool {
	to := f.Reply.Source
	if to == f.Original.Destination || !s.local(to.Addr()) {
		return false
	}
	port := to.Port()
	switch {
	case slices.Contains(p.Outbound, port), slices.Contains(p.DNS, port):
		c.Direction = Out
		c.Owner = s.owner(p, f.Protocol, f.Original)
	case slices.Contains(p.Inbound, port):
		c.Direction = In
		c.Owner = s.owner(p, f.Protocol, f.Reply)
		dialed := s.owner(p, f.Protocol, f.Original)
		c.fromProxy = dialed != nil && dialed.Proxy // istio's calls the pod's own service so
	default:
		return false
	}
	c.Listener, c.Way = port, Reached
	return true
}

const socketGone = "its socket is gone, and connection tracking knows no user"

// within looks at a connection from the pod to itself: the proxy's to the application, or one that the rules spare.
func (s Snapshot) within(p Proxy, c *Connection) {
	c.Direction = In
	c.Owner = s.owner(p, c.Protocol, c.Original)
	switch {
	case c.Owner == nil && isPassthrough(c.Original.Source.Addr()):
		c.Way, c.Why = ByProxy, "only istio's proxy connects from "+c.Original.Source.Addr().String()
	case c.Owner == nil:
		c.Why = socketGone
	case c.Owner.Proxy:
		c.Way = ByProxy
	default:
		c.Way = Within
	}
}

// isPassthrough reports whether this is an address from which istio's proxy connects to an application without a listener of its
// own.
func isPassthrough(a netip.Addr) bool {
	return a == netip.AddrFrom4([4]byte{127, 0, 0, 6}) || a == netip.AddrFrom16([16]byte{15: 6})
}

// incoming looks at a connection from elsewhere that NAT has left alone: by TPROXY the proxy has it all the same.
func (s Snapshot) incoming(p Proxy, c *Connection) {
	c.Direction = In
	accepted := Tuple{c.Original.Destination, c.Original.Source}
	c.Owner = s.owner(p, c.Protocol, accepted)
	dialed := s.owner(p, c.Protocol, c.Original)
	listener, listens := s.sockets.listener(c.Protocol, c.Original.Destination)
	switch {
	case c.Mark == istioClientMark, dialed != nil && dialed.Proxy: // by a transparent socket
		c.Owner, c.Way, c.Why = dialed, ByProxy, "the proxy connects in its client's name"
	case c.Owner != nil && c.Owner.Proxy && listens && slices.Contains(p.UIDs, listener.UID):
		c.Way, c.Why = Direct, "the proxy serves this port itself"
	case c.Owner != nil && c.Owner.Proxy:
		c.Listener, c.TProxy, c.Way = p.Inbound[0], true, Reached
	case c.Owner != nil:
		c.Way = Direct
	case p.has("istio"):
		c.Why = socketGone + ": it went direct, or TPROXY gave it to the proxy"
	case listens:
		c.Way, c.Inferred, c.Why = Direct, true, "no rule translated it"
	default:
		c.Why = socketGone
	}
}

// outgoing looks at a connection that leaves the pod as it was made.
func (s Snapshot) outgoing(p Proxy, c *Connection) {
	c.Direction = Out
	c.Owner = s.owner(p, c.Protocol, c.Original)
	switch {
	case c.Owner == nil:
		c.Why = socketGone + ": it is the proxy's own, or went direct"
	case c.Owner.Proxy:
		c.Way = ByProxy
	default:
		c.Way = Direct
	}
}

// idle is how long ago the last packet came: the kernel starts the entry's timeout anew at each.
func (s Snapshot) idle(f Flow) int64 {
	timeout, ok := s.timeouts[f.State]
	if !ok {
		return -1
	}
	return max(0, int64(timeout)-int64(f.Expires))
}
