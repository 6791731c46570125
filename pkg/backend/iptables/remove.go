package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/rules"
)

// Remove removes what is owned. What doesn't exist is no error.
func (p *Programs) Remove(ctx context.Context, lock *os.File, owned Tables) error {
	if p.variant == Nft && p.removeByHandle(ctx, lock, owned) == nil {
		return nil
	}
	rest := maps.Clone(owned)
	maps.DeleteFunc(rest, func(f rules.Family, own iptext.Save) bool {
		return p.variant == Legacy && own.OnlyJumps() && removeFromTables(f, own) == nil
	})
	return p.removeByProgram(ctx, lock, rest)
}

// removeByProgram lets iptables-restore do it.
func (p *Programs) removeByProgram(ctx context.Context, lock *os.File, owned Tables) error {
	inputs, unknown := map[rules.Family]string{}, map[rules.Family]error{}
	for f, own := range owned {
		empty, err := p.empty(f, own)
		if err != nil {
			unknown[f] = err
		} else if !empty {
			inputs[f] = own.Removal()
		}
	}
	// Usually everything is as it was programmed. If not, the transaction fails and iptables-save says what exists.
	again := Tables{}
	for f := range p.restore(ctx, lock, inputs) {
		again[f] = owned[f]
	}
	stale, failed := p.existing(ctx, lock, again)
	clear(inputs)
	for f, save := range stale {
		inputs[f] = save.Removal()
	}
	maps.Copy(failed, p.restore(ctx, lock, inputs))
	maps.Copy(failed, unknown)
	return inOrder("remove", failed)
}

// attempts bounds how often removeByHandle starts again because somebody else changed rules meanwhile.
const attempts = 3

// removeByHandle does without iptables-restore, which has to be started for each family and, when it ends, waits until the
// kernel has freed what it deleted. If it fails, nothing has changed.
func (p *Programs) removeByHandle(ctx context.Context, lock *os.File, owned Tables) error {
	var err error
	for range attempts {
		if err = p.tryByHandle(ctx, lock, owned); !errors.Is(err, netlink.ErrChanged) {
			break
		}
	}
	return err
}

func (p *Programs) tryByHandle(ctx context.Context, lock *os.File, owned Tables) error {
	listed, err := listChains(slices.Collect(maps.Keys(owned)), func(c chain) bool {
		own := owned[c.family]
		return len(own.ChainsIn(c.Table)) > 0 && !slices.Contains(own.Chains, c.Chain)
	})
	if err != nil {
		return err
	}
	saves, failed := p.saves(ctx, lock, notOnlyJumps(owned))
	if len(failed) > 0 {
		return inOrder("list", failed)
	}
	single, whole := map[chain][]handle{}, []chain{}
	for c, list := range listed.chains {
		own := owned[c.family]
		switch {
		case slices.Contains(own.Chains, c.Chain):
			whole = append(whole, c)
		case own.OnlyJumps():
			single[c] = jumps(c, list, own)
		case len(list) > 0:
			saved := saves[c.family]
			single[c], err = byPlace(c, list, saved.In(c.Chain), saved.Find(own).In(c.Chain))
		}
		if err != nil {
			return err
		}
	}
	return listed.remove(single, whole)
}

// notOnlyJumps picks the families in which detour owns something other than jumps in a base chain. What such a rule does
// can't be read from the kernel's listing, which differs between versions of iptables.
func notOnlyJumps(owned Tables) Tables {
	out := maps.Clone(owned)
	maps.DeleteFunc(out, func(_ rules.Family, own iptext.Save) bool { return own.OnlyJumps() })
	return out
}

// jumps picks the rules of a chain that jump into our chains.
func jumps(c chain, list []handle, own iptext.Save) []handle {
	return slices.DeleteFunc(list, func(h handle) bool {
		return !slices.Contains(own.Chains, rules.Chain{Table: c.Table, Name: h.into})
	})
}

// byPlace picks the rules of a chain that are ours. iptables lists them in the kernel's order.
func byPlace(c chain, list []handle, saved, ours []iptext.SavedRule) ([]handle, error) {
	if len(list) != len(saved) {
		return nil, fmt.Errorf("%s has %d rules, and iptables lists %d", c, len(list), len(saved))
	}
	var out []handle
	for i, r := range list {
		if slices.Contains(ours, saved[i]) {
			out = append(out, r)
		}
	}
	return out, nil
}
