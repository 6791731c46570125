package trace

import "slices"

// bases are the base chains that packets of an address family may meet. A namespace has few of them, and may have thousands of other chains.
type bases struct {
	chains    []*Chain // by priority, and of one priority the newest first
	ages      map[*Chain]age
	translate bool // one is of type nat: without any, the kernel never asks NAT
}

// age orders what has the same priority: the kernel runs the newest first. Connection tracking comes with the first rule that needs it.
type age int

const (
	ageOfTracking age = iota
	newerThanNAT
	ageOfNAT
	olderThanNAT
)

// bases finds them. The order of Tables and their Chains tells which are older. NAT is in all hooks from the first chain of type nat for the
// family on.
func (n *Namespace) bases(f Family) *bases {
	b := &bases{ages: map[*Chain]age{}}
	for _, t := range n.Tables {
		if t.Dormant || t.Family != f && t.Family != Inet && t.Family != Netdev {
			continue
		}
		for _, c := range t.Chains {
			if c.Base == nil {
				continue
			}
			b.chains = append(b.chains, c)
			switch {
			case c.Base.Type == NATChain:
				b.translate = true
			case b.translate:
				b.ages[c] = newerThanNAT
			default:
				b.ages[c] = olderThanNAT
			}
		}
	}
	slices.Reverse(b.chains)
	slices.SortStableFunc(b.chains, func(a, b *Chain) int { return a.Base.Priority - b.Base.Priority })
	return b
}

// hooked returns the base chains of a hook that see packets of the family, which is Netdev at a device, in the order in which the kernel
// runs them.
func (b *bases) hooked(h Hook, f Family, device string) []*Chain {
	var all []*Chain
	for _, c := range b.chains {
		family := c.Table.Family
		if family != f && (family != Inet || f == Netdev && h != Ingress) {
			continue
		}
		if c.Base.Hook == h && (c.Base.Device == "" || c.Base.Device == device) {
			all = append(all, c)
		}
	}
	return all
}
