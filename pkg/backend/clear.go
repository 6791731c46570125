package backend

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/rules"
)

// clear takes out what is stale and not the program's own; what of it the program's own backend has replaced is gone already.
// Whatever fails, the rest is tried.
func (p *Program) clear(ctx context.Context, lock *os.File, stale []attachment.Record) error {
	var errs []error
	for _, r := range stale {
		errs = append(errs, p.clearRoutes(r))
		if mayBe(r, nftables.Name) && p.way.Name() != nftables.Name {
			errs = append(errs, nftables.Remove())
		}
		if r.Backend != nftables.Name {
			errs = append(errs, p.clearIPTables(ctx, lock, r))
		}
	}
	return errors.Join(errs...)
}

func (p *Program) clearRoutes(r attachment.Record) error {
	var same, others []rules.Family
	for _, f := range r.Families {
		if slices.Contains(p.families, f) {
			same = append(same, f)
		} else {
			others = append(others, f)
		}
	}
	return errors.Join(route.Remove(r.Setup, others), route.Remove(r.Setup.Without(p.rules.Setup), same))
}

func (p *Program) clearIPTables(ctx context.Context, lock *os.File, r attachment.Record) error {
	var errs []error
	for _, b := range iptables.Installed(ctx) {
		if !mayBe(r, b.Name()) {
			continue
		}
		own := owned(r)
		if b.Name() == p.way.Name() {
			maps.DeleteFunc(own, func(f rules.Family, _ iptext.Save) bool { return slices.Contains(p.families, f) })
		}
		errs = append(errs, b.Remove(ctx, lock, own))
	}
	return errors.Join(errs...)
}

// mayBe reports whether the backend may have programmed what a record says; one that nobody wrote down may be any.
func mayBe(r attachment.Record, backend string) bool { return r.Backend == "" || r.Backend == backend }
