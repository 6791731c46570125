// Package redirect describes, in typed values only, which of a pod's traffic goes through its proxy.
package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/rules"
)

// Policy is what one pod's mesh wants of the pod's network namespace: an OSM or an Istio, the two ways in which meshes
// lay out their chains. It is independent of the address family: ranges of both families may stand in one list.
type Policy interface {
	// Validate reports every value that no kernel could program or that would loop traffic, in one error.
	Validate() error
	// Ruleset turns a valid policy into rules, in the order in which they end up when the mesh's own init container runs
	// its commands.
	Ruleset() rules.Ruleset
}

// Range is a range of addresses, and where it was asked for.
type Range struct {
	Prefix netip.Prefix
	Origin string
}

// Port is a TCP port, and where it was asked for.
type Port struct {
	Number uint16
	Origin string
}

// Interface is a network interface in the pod, and where it was asked for.
type Interface struct {
	Name   string
	Origin string
}

// User is a user ID whose connections stay direct, and why.
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

// listeners checks the proxy's own ports: none is 0, no two are the same.
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

// IsInterface reports whether s can be the name of one interface. The kernel takes more, iptables would take a + at the
// end for any ending.
func IsInterface(s string) bool {
	return s != "" && len(s) <= maxIfName && s != "." && s != ".." && s[0] != '-' && strings.Trim(s, letters+"_.-@") == ""
}

func isChain(s string) bool {
	return s != "" && len(s) <= maxChain && strings.Trim(s, letters+"_-") == ""
}
