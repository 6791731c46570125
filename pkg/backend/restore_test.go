package backend

import (
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
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
