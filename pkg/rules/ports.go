package rules

import (
	"fmt"
	"slices"
)

// MaxMultiport is how many ports one multiport match of iptables holds (XT_MULTI_PORTS); a range of ports counts as two.
const MaxMultiport = 15

// PortRange is all ports from one to another, both included.
type PortRange struct{ From, To uint16 }

// String prints the range as iptables does.
func (r PortRange) String() string {
	if r.From == r.To {
		return fmt.Sprint(r.From)
	}
	return fmt.Sprintf("%d:%d", r.From, r.To)
}

// PortRanges returns what a list of ports is programmed as. Up to as many as one multiport match holds stand as they were
// written, as the meshes' own commands have them. A longer list, which those commands fail with, is sorted, and neighbours
// become one range: it may hold every port that there is.
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
