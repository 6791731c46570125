package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	backend   string // the net conf's; empty is its default
	tools     string // folder of cnitool, bridge and host-local
	plugins   string // folder of detour
	manifests string // folder with one for each mesh
	// withoutDetour and wrongUser, of the proxy, are for tests: they make the demo fail.
	withoutDetour, wrongUser bool
}

// folder is that of the scenario's manifests.
func (o options) folder() string { return filepath.Join(o.manifests, o.scenario.Mesh) }

// stage is all that the demo sets up. The host's network stays as it is: what a node would hold is in a namespace too.
type stage struct {
	options
	cni        cnitool
	namespaces map[host]*nettest.Namespace // outside and the pods
	hosts      map[host]dual
	undo       []func() error
}

// build sets everything up. The caller must Close the stage even if there is an error.
func (s *stage) build(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "detour-demo-")
	if err != nil {
		return err
	}
	s.onClose(func() error { return os.RemoveAll(dir) })
	node, err := s.newNamespace("node")
	if err != nil {
		return err
	}
	s.cni = cnitool{options: s.options, node: node, dir: dir}
	if err := s.cni.configure(); err != nil {
		return fmt.Errorf("write CNI configuration: %w", err)
	}
	if err := s.attachAll(ctx); err != nil {
		return err
	}
	if err := s.namespaces[outside].Do(s.giveAddresses); err != nil {
		return fmt.Errorf("give the outside its addresses: %w", err)
	}
	return s.serve() //nolint:contextcheck // listening waits for nothing
}

func (s *stage) newNamespace(name string) (*nettest.Namespace, error) {
	ns, err := nettest.NewNamespace(name)
	if err == nil {
		s.onClose(ns.Close)
	}
	return ns, err
}

func (s *stage) attachAll(ctx context.Context) error {
	s.namespaces = map[host]*nettest.Namespace{}
	s.hosts = maps.Clone(outsideHosts)
	s.hosts[localhost], s.hosts[localDNS] = loopback, localDNSHosts
	if err := s.attach(ctx, outsideNetwork, outside, podID{}); err != nil {
		return err
	}
	for _, pod := range s.scenario.Pods {
		if err := s.attach(ctx, podNetwork, pod.Host, pod.ID); err != nil {
			return err
		}
	}
	return nil
}

// attach runs ADD for a new namespace, and DEL at the end: also after an ADD that failed, as runtimes do.
func (s *stage) attach(ctx context.Context, network string, h host, pod podID) error {
	ns, err := s.newNamespace(string(h))
	if err != nil {
		return err
	}
	s.namespaces[h] = ns
	s.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tearDownTime)
		defer cancel()
		return s.cni.del(ctx, network, ns, pod)
	})
	s.hosts[h], err = s.cni.add(ctx, network, ns, pod)
	return err
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
		if err := nettest.AwaitLocal(pair[1]); err != nil { // else nobody can listen there yet
			return err
		}
	}
	return nil
}

// serve starts all that answers.
func (s *stage) serve() error {
	for _, pod := range s.scenario.Pods {
		if pod.Sidecar != noSidecar {
			if err := s.serveProxy(pod); err != nil {
				return err
			}
		}
		if err := s.serveTCP(pod.Host, atApp); err != nil {
			return err
		}
	}
	return errors.Join(s.serveTCP(outside, atOutside), s.namespaces[outside].Do(s.serveUDP))
}

func (s *stage) serveProxy(pod podSpec) error {
	uid, gid := s.scenario.Proxy.user(pod.Sidecar)
	if s.wrongUser {
		uid, gid = uid+1, gid+1
	}
	process, err := startProxy(s.namespaces[pod.Host], uid, gid, proxyConfig{
		Outbound:    s.scenario.Proxy.Outbound,
		Inbound:     s.scenario.Proxy.Inbound,
		Transparent: pod.Sidecar == transparent,
		DNS:         s.scenario.Proxy.DNS,
		OwnPorts:    s.ports(pod.Host, atProxy),
	})
	if err != nil {
		return err
	}
	s.onClose(process.Close)
	return nil
}

func (s *stage) serveTCP(at host, name string) error {
	for _, port := range s.ports(at, name) {
		listener, err := nettest.Listen(s.namespaces[at], port, answers(name))
		if err != nil {
			return err
		}
		s.onClose(listener.Close)
	}
	return nil
}

// serveUDP has the calling thread's namespace, the outside, answer datagrams.
func (s *stage) serveUDP() error {
	for _, r := range s.scenario.rows() {
		if r.Want.At != atOutside || r.Service.Protocol != nettest.UDP {
			continue
		}
		for _, addr := range s.hosts[r.To] {
			listener, err := listenUDP(netip.AddrPortFrom(addr, r.Service.Port), atOutside)
			if err != nil {
				return err
			}
			s.onClose(listener.Close)
		}
	}
	return nil
}

// ports are those at which name is to answer TCP in the namespace of a host.
func (s *stage) ports(at host, name string) []uint16 {
	var ports []uint16
	for _, r := range s.scenario.rows() {
		if r.Want.At == name && r.Want.Via != dnsAnswers && r.Service.Protocol == nettest.TCP && s.home(r) == at {
			ports = append(ports, r.Service.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// home is in whose namespace the host is that a row connects to.
func (s *stage) home(r row) host {
	if r.To == localhost {
		return r.From.At
	}
	if _, ok := s.namespaces[r.To]; ok {
		return r.To
	}
	return outside
}

// dial makes one of a row's connections and returns the answer, or what became of it instead.
func (s *stage) dial(r row, dst netip.AddrPort) string {
	client := nettest.Process{Namespace: s.namespaces[r.From.At], UID: nettest.AppUID, GID: nettest.AppGID}
	if r.From.As != noSidecar {
		client.UID, client.GID = s.scenario.Proxy.user(r.From.As)
	}
	answer, err := client.Ask(nettest.Call{Protocol: r.Service.Protocol, Destination: dst, Timeout: dialTime})
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
