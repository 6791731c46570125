package backend

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/rules"
)

// The net conf's choices. Auto takes the first of the backends that has no drawback.
const (
	Auto     = "auto"
	IPTables = iptables.Choice
	NFTables = nftables.Name
)

// Choices are what the net conf may choose; the first is the default.
var Choices = choices()

func choices() []string {
	out := []string{Auto}
	for _, b := range backends {
		out = append(out, b.Choice())
	}
	return out
}

// Works fails if an ADD with this choice could not program now, as far as is known without programming. With Auto one backend
// is enough, as another replaces the first if that fails.
func Works(ctx context.Context, choice string) error {
	var first error
	for _, b := range backends {
		if choice != Auto && choice != b.Choice() {
			continue
		}
		err := b.Works(ctx)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// Prepare makes a ruleset ready for the backend that is chosen. It is called in the pod's namespace and changes nothing.
func Prepare(ctx context.Context, choice string, rs rules.Ruleset, families []rules.Family) (*Program, error) {
	if choice == Auto {
		return prepareAny(ctx, backends, rs, families)
	}
	i := slices.IndexFunc(backends, func(b driver.Backend) bool { return b.Choice() == choice })
	if i < 0 {
		return nil, fmt.Errorf("there is no backend %q", choice)
	}
	prepared, err := backends[i].Prepare(ctx, rs, families)
	if err != nil {
		return nil, err
	}
	return &Program{backend: backends[i], prepared: prepared, rules: rs, families: families}, nil
}

// Variant is a variant of a backend that the host has.
type Variant struct {
	backend driver.Backend
	variant driver.Variant
}

// Installed lists the variants of all backends that the host has, whichever of them Prepare would take.
func Installed(ctx context.Context) []Variant {
	var all []Variant
	for _, b := range backends {
		for _, v := range b.Installed(ctx) {
			all = append(all, Variant{b, v})
		}
	}
	return all
}

// Prepare makes a ruleset ready for this variant. It fails if the variant can't express it.
func (v Variant) Prepare(rs rules.Ruleset, families []rules.Family) (*Program, error) {
	prepared, err := v.variant.Prepare(rs, families)
	if err != nil {
		return nil, err
	}
	return &Program{backend: v.backend, prepared: prepared, rules: rs, families: families}, nil
}

// prepareAny takes the first backend that has no drawback. If each has one, it takes the first that can express the ruleset,
// but fails if one that is preferred to it isn't usable.
func prepareAny(ctx context.Context, list []driver.Backend, rs rules.Ruleset, families []rules.Family) (*Program, error) {
	var first *Program
	var unusable, unsupported error
	for i, b := range list {
		prepared, err := b.Prepare(ctx, rs, families)
		switch {
		case errors.As(err, new(driver.Unsupported)):
			unsupported = err
			continue
		case err != nil && first == nil:
			unusable = errors.Join(unusable, err)
			continue
		case err != nil:
			continue
		}
		p := &Program{backend: b, prepared: prepared, rules: rs, families: families, others: list[i+1:]}
		if prepared.Drawback() == nil {
			return p, nil
		}
		if first == nil {
			first = p
		}
	}
	switch {
	case first == nil:
		return nil, cmp.Or(unusable, unsupported)
	case unusable != nil:
		return nil, errors.Join(unusable, first.prepared.Drawback())
	}
	return first, nil
}

// Fallback returns a program of another backend that does the same, after one that Auto chose has failed: only Apply finds out
// whether iptables really works. It is nil if there is none.
func (p *Program) Fallback(ctx context.Context) *Program {
	other, err := prepareAny(ctx, p.others, p.rules, p.families)
	if err != nil || other == nil || other.prepared.Drawback() != nil {
		return nil
	}
	return other
}

// find returns the backend that calls a variant by this name; nil if there is none.
func find(variant string) driver.Backend {
	for _, b := range backends {
		if slices.Contains(b.Variants(), variant) {
			return b
		}
	}
	return nil
}

// FindIPTables lists iptables' programs on PATH, and starts each for its version.
func FindIPTables(ctx context.Context) []iptables.Found { return iptables.Find(ctx) }
