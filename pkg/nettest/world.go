package nettest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// dialTimeout is long enough for a SYN to be lost once and resent on a busy machine, and short enough for a test that
// wants the timeout.
const dialTimeout = 3 * time.Second

// World is a pod and its outside, linked, and the listeners in both.
type World struct {
	Pod     *Namespace
	Outside *Namespace
	// Timeout is for each connection; whoever wants packets to be dropped may shorten it.
	Timeout time.Duration

	listeners map[endpoint]*Listener
}

// endpoint is a port of one of the world's namespaces.
type endpoint struct {
	ns   *Namespace
	port uint16
}

// NewWorld creates a pod and its outside with nothing listening and no rules. The caller must Close it.
func NewWorld() (*World, error) {
	w := &World{Timeout: dialTimeout, listeners: map[endpoint]*Listener{}}
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
	for _, ns := range []*Namespace{w.Pod, w.Outside} {
		if ns != nil {
			errs = append(errs, ns.Close())
		}
	}
	return errors.Join(errs...)
}

// Serve starts what the packets may reach: in the pod a proxy at each of proxyPorts and each port at which a packet
// wants one, and the application at each other port that is dialed there; outside a server at each port that is dialed
// there. A packet that is wanted to fail is served too: then only a rule can make it fail. What listens already stays,
// so Serve may be called again; it must not run beside itself or Close.
func (w *World) Serve(packets []Packet, proxyPorts ...uint16) error {
	proxyPorts = append(slices.Clone(proxyPorts), wantedProxies(packets)...)
	for _, port := range proxyPorts {
		if err := w.listen(w.Pod, port, Proxy); err != nil {
			return err
		}
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

func (w *World) serveOne(p Packet) error {
	if p.Direction == Out && !inPod(p.Dst.Addr()) {
		return w.listen(w.Outside, p.Dst.Port(), Named("outside"))
	}
	return w.listen(w.Pod, p.Dst.Port(), Named("app"))
}

// inPod reports whether an address that the pod dials is its own.
func inPod(addr netip.Addr) bool {
	return addr.IsLoopback() || addr == PodIPv4 || addr == PodIPv6
}

func (w *World) listen(ns *Namespace, port uint16, banner Banner) error {
	at := endpoint{ns, port}
	if w.listeners[at] != nil {
		return nil
	}
	listener, err := Listen(ns, port, banner)
	if err != nil {
		return err
	}
	w.listeners[at] = listener
	return nil
}

// Send sends the packet and returns where it arrived, in the words of the packet language; p.Want plays no part. What
// the language has no words for is told in full: a proxy that was given another original destination than the dialed
// one (`proxy 15001 original 1.1.1.1:81`), a server at another port (`app 81`), and families that part
// (`IPv4 app, IPv6 error: refused`). The error is for a packet that could not be sent at all. Send may be called
// concurrently.
func (w *World) Send(p Packet) (string, error) {
	if p.Direction == Out {
		return w.dial(w.Pod, p.UID, p.Dst)
	}
	var v4, v6 string
	var err error
	if p.Families&IPv4 != 0 {
		if v4, err = w.dial(w.Outside, p.UID, netip.AddrPortFrom(PodIPv4, p.Dst.Port())); err != nil {
			return "", err
		}
	}
	if p.Families&IPv6 != 0 {
		if v6, err = w.dial(w.Outside, p.UID, netip.AddrPortFrom(PodIPv6, p.Dst.Port())); err != nil {
			return "", err
		}
	}
	if p.Families == Both && v4 != v6 {
		return fmt.Sprintf("IPv4 %s, IPv6 %s", v4, v6), nil
	}
	return max(v4, v6), nil // they are the same, or one is empty
}

func (w *World) dial(ns *Namespace, uid uint32, dst netip.AddrPort) (string, error) {
	answer, err := Dial(ns, uid, dst, w.Timeout)
	if err == nil {
		return judge(answer, dst), nil
	}
	if slices.Contains(dialErrors, err) {
		return failure(err), nil
	}
	return "", err
}

// judge leaves out of a listener's answer what agrees with what was dialed.
func judge(answer string, dialed netip.AddrPort) string {
	if short, ok := strings.CutSuffix(answer, " original "+dialed.String()); ok {
		return short
	}
	for _, name := range []string{"app", "outside"} {
		if answer == fmt.Sprintf("%s %d", name, dialed.Port()) {
			return name
		}
	}
	return answer
}
