package rules

import (
	"fmt"
	"slices"
)

// MaxMultiport is how many ports one multiport match of iptables holds (XT_MULTI_PORTS); a range counts as two.
const MaxMultiport = 15

// PortRange is the ports from one to another, both included.
type PortRange struct{ From, To uint16 }

// String prints the range as iptables does.
func (r PortRange) String() string {
	if r.From == r.To {
		return fmt.Sprint(r.From)
	}
	return fmt.Sprintf("%d:%d", r.From, r.To)
}

// PortRanges returns the ranges to program for a list of ports. A list that fits into one multiport match stays as it was
// written, as in the meshes' own commands. Those commands fail with a longer list: PortRanges sorts it and joins adjacent ports
// into ranges, so that a list may hold every port.
func PortRanges(ports []uint16) []PortRange {
	longer := len(ports) > MaxMultiport
	if longer {
		ports = slices.Sorted(slices.Values(ports))
	}
	var out []PortRange
	for _, p := range ports {
		if last := len(out) - 1; longer && last >= 0 && int(p) <= int(out[last].To)+1 {
			out[last].To = p
			continue
		}
		out = append(out, PortRange{p, p})
	}
	return out
}
