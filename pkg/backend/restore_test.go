package backend

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/internal/driver"
	"github.com/detour-cni/detour/pkg/backend/route"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// Without the programs of a record there is nothing to restore, but what is stale still goes: a DEL depends on it.
func TestRestoreWithoutTheProgramsRemovesWhatIsStale(t *testing.T) {
	decision, err := testcase.Find(t, "../..", "osm/defaults").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	rs := decision.Policy.Ruleset()
	ns := nettest.StartNamespace(t, "restore")
	stale, err := Prepare(t.Context(), NFTables, rs, rules.Families)
	if err != nil {
		t.Fatal(err)
	}
	began := applied(t, ns, stale)
	t.Setenv("PATH", t.TempDir())
	record := attachment.Record{Backend: "iptables-nft", Families: rules.Families}
	err = ns.Do(func() error { return Restore(t.Context(), nil, record, began) })
	if err != nil {
		t.Error(err)
	}
	err = ns.Do(func() error {
		if !Fresh() {
			t.Error("the stale table is still there")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// An ADD that was killed while it replaced an earlier one names that in its own record's Stale.
func TestRestoreRemovesWhatTheStaleRecordWasToReplace(t *testing.T) {
	t.Parallel()
	decision, err := testcase.Find(t, "../..", "osm/defaults").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	ns := nettest.StartNamespace(t, "restore")
	older, err := Prepare(t.Context(), NFTables, decision.Rules, rules.Families)
	if err != nil {
		t.Fatal(err)
	}
	began := attachment.Record{Stale: []attachment.Record{applied(t, ns, older)}}
	err = ns.Do(func() error {
		if err := Restore(t.Context(), nil, attachment.Record{}, began); err != nil {
			return err
		}
		if !Fresh() {
			t.Error("the table of the replaced ADD is still there")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

type failing struct{ driver.Program }

func (failing) Variant() string { return "failing" }
func (failing) Apply(context.Context, *os.File, []driver.State) error {
	return errors.New("the kernel says no")
}

// Routes and rules are one thing: without the rules there are no routes.
func TestAFailedApplyLeavesNoRoutes(t *testing.T) {
	t.Parallel()
	decision, err := testcase.Find(t, "../..", "istio/tproxy").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	setup := decision.Rules.Setup
	if len(setup.Routes) == 0 || len(setup.Loopback) == 0 {
		t.Fatalf("the case sets nothing up: %+v", setup)
	}
	err = nettest.StartNamespace(t, "failing").Do(func() error {
		none, err := route.Differences(setup, rules.Families)
		if err != nil {
			return err
		}
		p := &Program{prepared: failing{}, rules: decision.Rules, families: rules.Families}
		if err := p.Apply(t.Context(), nil); err == nil || err.Error() != "the kernel says no" {
			t.Errorf("got %v", err)
		}
		left, err := route.Differences(setup, rules.Families)
		if len(none) == 0 || !slices.Equal(left, none) {
			t.Errorf("missing before: %q, after: %q", none, left)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
