// Package redirect describes, in typed values only, which of a pod's traffic goes through its proxy, and turns that into rules.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Policy is what a mesh wants of one pod's network namespace. Each way in which meshes lay out their chains is a type of
// its own. A policy is independent of the address family: a list of ranges may hold both.
type Policy interface {
	// Sidecar returns the proxy that the pod's traffic goes through.
	Sidecar() Proxy
	// Validate reports every value that no kernel could program or that would loop traffic, in one error.
	Validate() error
	// Ruleset turns a valid policy into rules, in the order in which they end up when the mesh's own init container runs
	// its commands.
	Ruleset() rules.Ruleset
}

// Proxy is the sidecar: the user and group that it runs as and the ports that it listens on. A port is 0 if the mesh's
// proxy has no such listener.
type Proxy struct {
	UID uint32
	// GID is 0 if the rules identify the proxy by its user alone.
	GID      uint32
	Inbound  uint16
	Outbound uint16
	Admin    uint16
	Tunnel   uint16 // HBONE
	DNS      uint16
}

// Listeners returns the ports to which connections and queries are redirected.
func (p Proxy) Listeners() []uint16 {
	return slices.DeleteFunc([]uint16{p.Outbound, p.Inbound, p.DNS}, func(port uint16) bool { return port == 0 })
}

// owners match the packets that the proxy itself sends: by its user, then by its group.
func (p Proxy) owners() []rules.Match {
	out := []rules.Match{rules.OwnerUID{ID: p.UID}}
	if p.GID != 0 {
		out = append(out, rules.OwnerGID{ID: p.GID})
	}
	return out
}

// Range is a range of addresses. Origin is the annotation or field that asks for it, here and below.
type Range struct {
	Prefix netip.Prefix
	Origin string
}

// Port is a TCP port.
type Port struct {
	Number uint16
	Origin string
}

// Interface is a network interface in the pod.
type Interface struct {
	Name   string
	Origin string
}

// User is a user ID whose connections stay direct.
type User struct {
	UID    uint32
	Origin string
}

// problems collects what is wrong with a policy.
type problems []string

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

func (p *problems) err() error {
	if *p == nil {
		return nil
	}
	return errors.New(strings.Join(*p, "; "))
}

// listeners checks the proxy's ports: none is 0, and no two are the same.
func (p *problems) listeners(ports ...uint16) {
	seen := map[uint16]bool{}
	for _, port := range ports {
		if port == 0 {
			p.add("proxy port 0: a port is 1 to 65535")
		} else if seen[port] {
			p.add("proxy port %d stands for two listeners", port)
		}
		seen[port] = true
	}
}

func (p *problems) ports(lists ...[]Port) {
	for _, list := range lists {
		for _, port := range list {
			if port.Number == 0 {
				p.add("%s: port 0: a port is 1 to 65535", port.Origin)
			}
		}
	}
}

func (p *problems) ranges(lists ...[]Range) {
	for _, list := range lists {
		for _, r := range list {
			if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() {
				p.add("%s: range %s is not a plain IPv4 or IPv6 network", r.Origin, r.Prefix)
			}
		}
	}
}

func (p *problems) interfaces(lists ...[]Interface) {
	for _, list := range lists {
		for _, i := range list {
			if !IsInterface(i.Name) {
				p.add("%s: %q is not an interface's name", i.Origin, i.Name)
			}
		}
	}
}

const (
	letters   = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	maxChain  = 28 // XT_EXTENSION_MAXNAMELEN less the final NUL
	maxIfName = 15 // IFNAMSIZ less the final NUL
)

// IsInterface reports whether s can be the name of one interface. It is stricter than the kernel: to iptables, a + at the end
// stands for any ending.
func IsInterface(s string) bool {
	return s != "" && len(s) <= maxIfName && s != "." && s != ".." && s[0] != '-' && strings.Trim(s, letters+"_.-@") == ""
}

func isChain(s string) bool {
	return s != "" && len(s) <= maxChain && strings.Trim(s, letters+"_-") == ""
}
