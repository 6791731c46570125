package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Patience is for what must come. Only a test that fails waits that long, so it allows for a very busy machine. Silence is
// for what must not come, and is waited for in full.
const (
	Patience = time.Minute
	Silence  = 300 * time.Millisecond
)

// World is a pod and its outside, linked, and the listeners in both.
type World struct {
	Pod     *Namespace
	Outside *Namespace
	// Guest is the virtual machine behind the pod, or nil before a packet that needs it is served.
	Guest *Namespace
	// Timeout is for each connection but those that are wanted to time out, which have Silence.
	Timeout, Silence time.Duration
	// ProxyUID and ProxyGID own the sockets of the proxies that Serve starts.
	ProxyUID, ProxyGID uint32

	net1      bool
	listeners map[endpoint]*Listener
}

// endpoint is a port of one of the world's namespaces.
type endpoint struct {
	ns       *Namespace
	protocol Protocol
	port     uint16
}

// NewWorld creates a pod and its outside with nothing listening and no rules. The caller must Close it.
func NewWorld() (*World, error) {
	w := &World{Timeout: Patience, Silence: Silence, listeners: map[endpoint]*Listener{}}
	if err := w.build(); err != nil {
		return nil, fmt.Errorf("build world: %w", errors.Join(err, w.Close()))
	}
	return w, nil
}

func (w *World) build() (err error) {
	if w.Pod, err = NewNamespace("pod"); err != nil {
		return err
	}
	if w.Outside, err = NewNamespace("outside"); err != nil {
		return err
	}
	return Link(w.Pod, w.Outside)
}

// Close stops the listeners and removes the namespaces. A second Close does nothing.
func (w *World) Close() error {
	var errs []error
	for _, listener := range w.listeners {
		errs = append(errs, listener.Close())
	}
	clear(w.listeners)
	for _, ns := range []*Namespace{w.Pod, w.Outside, w.Guest} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// Serve starts what the packets may reach: in the pod a proxy at each of proxyPorts and each port at which a packet
// wants one, and the application at each other port that is dialed there; outside a server at each port that is dialed
// there. The proxies have a UDP port too if any packet is UDP. The interfaces and the guest that packets need are added.
// A packet that is wanted to fail is served too: then only a rule can make it fail. What is there already stays, so Serve
// may be called again; it must not run beside itself, Send or Close.
func (w *World) Serve(packets []Packet, proxyPorts ...uint16) error {
	if err := w.extend(packets); err != nil {
		return err
	}
	if err := w.serveProxies(append(slices.Clone(proxyPorts), wantedProxies(packets)...), protocols(packets)); err != nil {
		return err
	}
	for _, p := range packets {
		if err := w.serveOne(p); err != nil {
			return fmt.Errorf("serve %q: %w", p, err)
		}
	}
	return nil
}

func wantedProxies(packets []Packet) []uint16 {
	var ports []uint16
	for _, p := range packets {
		if p.Want.Kind == ToProxy {
			ports = append(ports, p.Want.ProxyPort)
		}
	}
	return ports
}

// protocols are those at which a proxy listens.
func protocols(packets []Packet) []Protocol {
	if slices.ContainsFunc(packets, func(p Packet) bool { return p.Protocol == UDP }) {
		return []Protocol{TCP, UDP}
	}
	return []Protocol{TCP}
}

func (w *World) serveProxies(ports []uint16, protocols []Protocol) error {
	proxy := Process{w.Pod, w.ProxyUID, w.ProxyGID}
	for _, port := range ports {
		for _, protocol := range protocols {
			err := w.listen(endpoint{w.Pod, protocol, port}, func() (*Listener, error) {
				if protocol == UDP {
					return proxy.ListenUDP(port, "proxy")
				}
				return proxy.ListenTransparent(port, ProxyAt(port))
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *World) serveOne(p Packet) error {
	ns, name := w.Pod, "app"
	if p.Direction != In && !inPod(p.Dst.Addr()) {
		ns, name = w.Outside, "outside"
	}
	return w.listen(endpoint{ns, p.Protocol, p.Dst.Port()}, func() (*Listener, error) {
		if p.Protocol == UDP {
			return own(ns).ListenUDP(p.Dst.Port(), name)
		}
		return own(ns).Listen(p.Dst.Port(), Named(name))
	})
}

// inPod reports whether an address that is dialed is the pod's own.
func inPod(addr netip.Addr) bool {
	return addr.IsLoopback() || slices.ContainsFunc([]end{podEnd, podNet1, podGuest}, func(e end) bool { return slices.Contains(e.addrs(), addr) })
}

func (w *World) listen(at endpoint, start func() (*Listener, error)) error {
	if w.listeners[at] != nil {
		return nil
	}
	listener, err := start()
	if err != nil {
		return err
	}
	w.listeners[at] = listener
	return nil
}
