// Package probe finds out whether a pod's redirection works, by connections of its own. It needs no privilege inside the pod: it reads no
// rules, but sees where its connections end.
//
// Where the proxy does not run yet, as in an init container, the probe listens at the proxy's ports itself, and asks the kernel for the
// destination that each connection had. Where the proxy runs, the probe finds out that it accepts connections that nobody else would.
package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/originaldst"
	"github.com/detour-cni/detour/pkg/rules"
)

// Result is what a test has shown.
type Result string

// The results.
const (
	Works    Result = "works"
	Broken   Result = "broken"
	Unproven Result = "unproven"
)

// Direction is that of a connection, seen from the pod.
type Direction string

// The directions.
const (
	Outbound Direction = "outbound"
	Inbound  Direction = "inbound"
)

// Finding is what became of one test.
type Finding struct {
	Family    int       `json:"family"` // 4 or 6
	Direction Direction `json:"direction"`
	Result    Result    `json:"result"`
	// Proxy says that the proxy took the connection; otherwise the probe stood in for it.
	Proxy  bool   `json:"proxy"`
	Detail string `json:"detail"`
}

// Probe is what to test.
type Probe struct {
	// Addresses are the pod's. The first of each family is tested.
	Addresses []netip.Addr
	// OutboundPort is the proxy's outbound listener; InboundPorts are where its inbound listener may be.
	OutboundPort uint16
	InboundPorts []uint16
	// To is where an outbound connection is begun. Nobody answers there.
	To map[rules.Family]netip.AddrPort
	// AsProxy says that the probe runs as the proxy's user, whose connections leave the pod unredirected, and whose connections to the
	// pod's own address many meshes send to the inbound listener.
	AsProxy bool
	// SelfCalls says that the mesh redirects the proxy's calls to its own pod for certain.
	SelfCalls bool
	// In runs f in the pod's network namespace. Outside runs it in one from which the pod is reached; nil if there is none.
	In, Outside func(f func() error) error
}

// Nowhere are addresses for documentation (RFC 5737, RFC 3849), with a port that nobody excludes.
var Nowhere = map[rules.Family]netip.AddrPort{
	rules.IPv4: netip.MustParseAddrPort("192.0.2.1:47211"),
	rules.IPv6: netip.MustParseAddrPort("[2001:db8::1]:47211"),
}

// closedPort is a port at which no application listens, as a rule.
const closedPort = 47211

// patience is how long a connection may take. A redirected one does not leave the machine.
const patience = 2 * time.Second

// Run runs all tests, each family beside the other. It takes at most 5 s.
func (p Probe) Run(ctx context.Context) []Finding {
	families := rules.FamiliesOf(p.Addresses)
	found := make([][]Finding, len(families))
	var all sync.WaitGroup
	for i, f := range families {
		all.Go(func() { found[i] = []Finding{p.outbound(ctx, f), p.inbound(ctx, f)} })
	}
	all.Wait()
	return slices.Concat(found...)
}

func (p Probe) outbound(ctx context.Context, f rules.Family) Finding {
	found := Finding{Family: int(f), Direction: Outbound}
	if p.AsProxy {
		found.Result, found.Detail = Unproven, "the proxy's own connections are not redirected; run the probe as another user"
		return found
	}
	return p.test(ctx, found, p.To[f], []uint16{p.OutboundPort}, p.In)
}

func (p Probe) inbound(ctx context.Context, f rules.Family) Finding {
	found := Finding{Family: int(f), Direction: Inbound}
	from := p.Outside
	if from == nil {
		from = p.In
	}
	if p.Outside == nil && !p.AsProxy {
		found.Result, found.Detail = Unproven, "only a connection from outside can prove it; run the probe on the node: detourctl probe --pod, or kubectl detour probe --from-node"
		return found
	}
	i := slices.IndexFunc(p.Addresses, func(a netip.Addr) bool { return rules.Of(a) == f })
	found = p.test(ctx, found, netip.AddrPortFrom(p.Addresses[i], closedPort), p.InboundPorts, from)
	if p.Outside == nil && !p.SelfCalls && found.Result == Broken {
		found.Result, found.Detail = Unproven, found.Detail+"; not every mesh redirects the proxy's calls to its own pod"
	}
	return found
}

// test dials to and finds out whether it comes to one of the proxy's ports.
func (p Probe) test(ctx context.Context, found Finding, to netip.AddrPort, ports []uint16, from func(func() error) error) Finding {
	arrivals := make(chan arrival, len(ports))
	for _, port := range ports {
		var l *net.TCPListener
		err := p.In(func() (err error) {
			l, err = listen(rules.Family(found.Family), port)
			return err
		})
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			found.Proxy = true
		case err != nil:
			found.Result, found.Detail = Unproven, fmt.Sprintf("listen at port %d: %v", port, err)
			return found
		default:
			defer func() { _ = l.Close() }()
			go accept(l, port, arrivals)
		}
	}
	err := from(func() error { return dial(ctx, to) })
	return found.judge(to, err, arrivals)
}

// judge draws the conclusion from how dialing ended and what arrived.
func (found Finding) judge(to netip.AddrPort, dialed error, arrivals <-chan arrival) Finding {
	if dialed == nil && !found.Proxy {
		select {
		case a := <-arrivals:
			return found.arrived(a, to)
		case <-time.After(patience):
		}
	}
	switch {
	case errors.Is(dialed, unix.ENETUNREACH) || errors.Is(dialed, unix.EHOSTUNREACH) && found.Direction == Outbound:
		found.Result, found.Detail = Broken, fmt.Sprintf("a connection to %s was not redirected: %v", to, dialed)
	case dialed != nil:
		found.Result, found.Detail = Broken, fmt.Sprintf("a connection to %s did not come to the proxy's listener: %v", to, dialed)
	case found.Proxy:
		found.Result, found.Detail = Works, fmt.Sprintf("the proxy accepted a connection to %s", to)
	default:
		found.Result, found.Detail = Broken, fmt.Sprintf("somebody else accepted a connection to %s", to)
	}
	return found
}

func (found Finding) arrived(a arrival, to netip.AddrPort) Finding {
	found.Result, found.Detail = Works, fmt.Sprintf("a connection to %s came to port %d", to, a.port)
	switch {
	case a.err != nil:
		found.Result, found.Detail = Broken, fmt.Sprintf("a connection to %s came to port %d, but its destination is lost: %v", to, a.port, a.err)
	case a.original != to:
		found.Result, found.Detail = Broken, fmt.Sprintf("a connection to %s came to port %d as one to %s", to, a.port, a.original)
	}
	return found
}

func listen(f rules.Family, port uint16) (*net.TCPListener, error) {
	network := "tcp4"
	if f == rules.IPv6 {
		network = "tcp6"
	}
	return net.ListenTCP(network, &net.TCPAddr{Port: int(port)})
}

// dial connects from the calling thread's network namespace.
func dial(ctx context.Context, to netip.AddrPort) error {
	d := net.Dialer{Timeout: patience}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// arrival is a connection that came to a port.
type arrival struct {
	port     uint16
	original netip.AddrPort
	err      error
}

// accept accepts connections until the listener closes.
func accept(l *net.TCPListener, port uint16, arrivals chan<- arrival) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return
		}
		a := arrival{port: port}
		a.original, a.err = originaldst.Of(conn)
		conn.Close()
		select {
		case arrivals <- a:
		default: // one is enough
		}
	}
}
