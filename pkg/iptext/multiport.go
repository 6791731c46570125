package iptext

import "github.com/detour-cni/detour/pkg/rules"

// slots is how many of a multiport match's places the range takes.
func slots(r rules.PortRange) int {
	if r.From == r.To {
		return 1
	}
	return 2
}

// multiports divides a list of ports into such as fit into one multiport match each.
func multiports(ports []uint16) [][]uint16 {
	var out [][]uint16
	free := 0 // slots of the last
	for _, r := range rules.PortRanges(ports) {
		if free < slots(r) {
			out = append(out, nil)
			free = rules.MaxMultiport
		}
		free -= slots(r)
		last := &out[len(out)-1]
		for p := int(r.From); p <= int(r.To); p++ {
			*last = append(*last, uint16(p))
		}
	}
	return out
}
