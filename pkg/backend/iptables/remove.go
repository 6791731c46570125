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

// Remove takes what is owned out of the families. What is not there is no error.
func (b *Backend) Remove(ctx context.Context, lock *os.File, owned Owned) error {
	if b.variant == Nft && b.removeByHandle(ctx, lock, owned) == nil {
		return nil
	}
	rest := maps.Clone(owned)
	maps.DeleteFunc(rest, func(f rules.Family, own iptext.Save) bool {
		return b.variant == Legacy && own.OnlyJumps() && removeFromTables(f, own) == nil
	})
	return b.removeByProgram(ctx, lock, rest)
}

// removeByProgram is how iptables itself does it.
func (b *Backend) removeByProgram(ctx context.Context, lock *os.File, owned Owned) error {
	inputs := map[rules.Family]string{}
	for f, own := range owned {
		if !b.empty(f, own) {
			inputs[f] = iptext.Save{}.Restore(own.Owned(own))
		}
	}
	// As a rule it is all as it was programmed. Where it is not, the transaction fails and it takes a look at what is there.
	again := Owned{}
	for f := range b.restore(ctx, lock, inputs) {
		again[f] = owned[f]
	}
	stale, failed := b.there(ctx, lock, again)
	clear(inputs)
	for f, save := range stale {
		inputs[f] = iptext.Save{}.Restore(save)
	}
	maps.Copy(failed, b.restore(ctx, lock, inputs))
	return inOrder("remove", failed)
}

// attempts is how often removeByHandle begins anew when somebody else changes rules meanwhile.
const attempts = 3

// removeByHandle does without iptables-restore, which has to be started for each family and waits, as it ends, until the
// kernel has freed what it deleted. Where it fails, nothing is changed.
func (b *Backend) removeByHandle(ctx context.Context, lock *os.File, owned Owned) error {
	var err error
	for range attempts {
		if err = b.tryByHandle(ctx, lock, owned); !errors.Is(err, netlink.ErrChanged) {
			break
		}
	}
	return err
}

func (b *Backend) tryByHandle(ctx context.Context, lock *os.File, owned Owned) error {
	listed, err := listChains(slices.Collect(maps.Keys(owned)), func(c chain) bool {
		own := owned[c.family]
		return len(own.ChainsIn(c.Table)) > 0 && !slices.Contains(own.Chains, c.Chain)
	})
	if err != nil {
		return err
	}
	saves, failed := b.saves(ctx, lock, notOnlyJumps(owned))
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
			single[c], err = byPlace(c, list, saved.In(c.Chain), saved.Owned(own).In(c.Chain))
		}
		if err != nil {
			return err
		}
	}
	return listed.remove(single, whole)
}

// notOnlyJumps picks the families of which something other than a jump is owned in a base chain: what such a rule does
// can't be told from what the kernel lists, which differs from version to version of iptables.
func notOnlyJumps(owned Owned) Owned {
	out := maps.Clone(owned)
	maps.DeleteFunc(out, func(_ rules.Family, own iptext.Save) bool { return own.OnlyJumps() })
	return out
}

// jumps picks those of a chain's rules that jump into chains of ours.
func jumps(c chain, list []handle, own iptext.Save) []handle {
	return slices.DeleteFunc(list, func(h handle) bool {
		return !slices.Contains(own.Chains, rules.Chain{Table: c.Table, Name: h.into})
	})
}

// byPlace picks those of a chain's rules that are ours: iptables lists them in the kernel's order.
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
