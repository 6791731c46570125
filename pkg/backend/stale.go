package backend

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/rules"
)

// clearStale removes what is stale and not kept. The backend of what is kept has replaced its own part already. If something
// fails, it goes on with the rest.
func clearStale(ctx context.Context, lock *os.File, stale []attachment.Record, kept attachment.Record) error {
	var errs []error
	for _, r := range stale {
		errs = append(errs, clearRoutes(r, kept))
		if b := find(r.Backend); b != nil && r.Backend != kept.Backend {
			errs = append(errs, b.Remove(ctx, lock, stateOf(r)))
		}
	}
	return errors.Join(errs...)
}

func clearRoutes(r, kept attachment.Record) error {
	var same, others []rules.Family
	for _, f := range r.Families {
		if slices.Contains(kept.Families, f) {
			same = append(same, f)
		} else {
			others = append(others, f)
		}
	}
	return errors.Join(route.Remove(r.Setup, others), route.Remove(r.Setup.Without(kept.Setup), same))
}

// traces are the records' traces, each of one backend. Earlier versions wrote one trace without a backend for whatever may be
// in a namespace.
func traces(records []attachment.Record) []attachment.Record {
	var out []attachment.Record
	for _, record := range records {
		for _, r := range record.Traces() {
			out = append(out, r)
			if r.Backend == "" && r.Payload != nil {
				out = append(out, forEach(func(_ driver.Backend, variant string) driver.State {
					return driver.State{Variant: variant, Payload: r.Payload}
				})...)
			}
		}
	}
	return out
}

// forEach makes a trace for each variant of each backend.
func forEach(state func(driver.Backend, string) driver.State) []attachment.Record {
	var out []attachment.Record
	for _, b := range backends {
		for _, variant := range b.Variants() {
			s := state(b, variant)
			out = append(out, attachment.Record{Backend: s.Variant, Payload: s.Payload, Families: rules.Families})
		}
	}
	return out
}

func stateOf(r attachment.Record) driver.State {
	return driver.State{Variant: r.Backend, Payload: r.Payload}
}

// statesOf are those of one variant.
func statesOf(variant string, records []attachment.Record) []driver.State {
	var out []driver.State
	for _, r := range records {
		if r.Backend == variant {
			out = append(out, stateOf(r))
		}
	}
	return out
}
