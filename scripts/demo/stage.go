package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/detour-cni/detour/pkg/nettest"
)

// dialTime is for each connection. They are all made at once.
const dialTime = 5 * time.Second

// tearDownTime is for the last calls of cnitool.
const tearDownTime = 10 * time.Second

// options are what the demo is told.
type options struct {
	scenario  scenario
	tools     string // folder of cnitool, bridge and host-local
	plugins   string // folder of detour
	manifests string
	// withoutDetour and proxyUID are for tests: they make the demo fail.
	withoutDetour bool
	proxyUID      uint32
}

// stage is all that the demo sets up. The host's network stays as it is: what a node would hold is in a namespace too.
type stage struct {
	options
	cni                       cnitool
	node, outside, web, batch *nettest.Namespace
	hosts                     map[host]dual
	outsideAddress            dual
	undo                      []func() error
}

// build sets everything up. The caller must Close the stage even if there is an error.
func (s *stage) build(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "detour-demo-")
	if err != nil {
		return err
	}
	s.onClose(func() error { return os.RemoveAll(dir) })
	for _, n := range []struct {
		name string
		ns   **nettest.Namespace
	}{{"node", &s.node}, {"outside", &s.outside}, {"web", &s.web}, {"batch", &s.batch}} {
		if *n.ns, err = nettest.NewNamespace(n.name); err != nil {
			return err
		}
		s.onClose((*n.ns).Close)
	}
	s.cni = cnitool{options: s.options, node: s.node, dir: dir}
	if err := s.cni.configure(); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	if err := s.attachAll(ctx); err != nil {
		return err
	}
	if err := s.outside.Do(s.giveAddresses); err != nil {
		return fmt.Errorf("give the outside its addresses: %w", err)
	}
	return s.serve()
}

func (s *stage) attachAll(ctx context.Context) (err error) {
	s.hosts = maps.Clone(outsideHosts)
	s.hosts[localhost] = loopback
	if s.outsideAddress, err = s.attach(ctx, outsideNetwork, s.outside, podID{}); err != nil {
		return err
	}
	if s.hosts[webPod], err = s.attach(ctx, podNetwork, s.web, s.scenario.Meshed); err != nil {
		return err
	}
	s.hosts[batchPod], err = s.attach(ctx, podNetwork, s.batch, s.scenario.Plain)
	return err
}

// attach runs ADD, and DEL at the end: also after an ADD that failed, as runtimes do.
func (s *stage) attach(ctx context.Context, network string, ns *nettest.Namespace, pod podID) (dual, error) {
	s.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tearDownTime)
		defer cancel()
		return s.cni.del(ctx, network, ns, pod)
	})
	return s.cni.add(ctx, network, ns, pod)
}

// giveAddresses makes the calling thread's namespace all hosts of the outside at once.
func (s *stage) giveAddresses() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, pair := range outsideHosts {
		for _, addr := range pair {
			mask := net.CIDRMask(addr.BitLen(), addr.BitLen())
			if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: mask}}); err != nil {
				return fmt.Errorf("add %s: %w", addr, err)
			}
		}
	}
	return nil
}

// serve starts all that answers.
func (s *stage) serve() error {
	proxy, err := startProxy(s.web, s.proxyUID, s.ports(s.web, atProxy))
	if err != nil {
		return err
	}
	s.onClose(proxy.Close)
	for _, l := range []struct {
		ns   *nettest.Namespace
		name string
	}{{s.outside, atOutside}, {s.web, atApp}, {s.batch, atApp}} {
		for _, port := range s.ports(l.ns, l.name) {
			listener, err := nettest.Listen(l.ns, port, answers(l.name))
			if err != nil {
				return err
			}
			s.onClose(listener.Close)
		}
	}
	return nil
}

// ports are those at which name is to answer in the namespace.
func (s *stage) ports(ns *nettest.Namespace, name string) []uint16 {
	var ports []uint16
	for _, r := range s.scenario.rows() {
		if r.Want.At == name && s.home(r) == ns {
			ports = append(ports, r.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// home is the namespace of the host that a row connects to.
func (s *stage) home(r row) *nettest.Namespace {
	switch r.To {
	case localhost:
		ns, _ := s.caller(r.From)
		return ns
	case webPod:
		return s.web
	case batchPod:
		return s.batch
	default:
		return s.outside
	}
}

// caller is the namespace and the user from which a connection comes.
func (s *stage) caller(c caller) (*nettest.Namespace, uint32) {
	switch c {
	case application:
		return s.web, nettest.AppUID
	case sidecar:
		return s.web, proxyUID
	case plainApp:
		return s.batch, nettest.AppUID
	default:
		return s.outside, nettest.AppUID
	}
}

// dial makes one of a row's connections and returns the answer, or what became of it instead.
func (s *stage) dial(r row, dst netip.AddrPort) string {
	ns, uid := s.caller(r.From)
	answer, err := nettest.Dial(ns, uid, dst, dialTime)
	if err != nil {
		return err.Error()
	}
	return answer
}

func (s *stage) onClose(undo func() error) { s.undo = append(s.undo, undo) }

// Close takes everything down, last things first, whatever build got to.
func (s *stage) Close() error {
	var errs []error
	for _, undo := range slices.Backward(s.undo) {
		errs = append(errs, undo())
	}
	s.undo = nil
	return errors.Join(errs...)
}
