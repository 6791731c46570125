package backend

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// On a host without ip6tables STATUS is well, and a pod is programmed whose families are those that iptables has.
func TestIptablesAlone(t *testing.T) {
	nettest.RequireNetns(t)
	dir := t.TempDir()
	for _, program := range []string{"iptables-nft", "iptables-nft-restore", "iptables-nft-save"} {
		nettest.RequireProgram(t, program)
		path, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	decision, err := testcase.Find(t, "../..", "osm/defaults").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	rs := decision.Policy.Ruleset()
	if err := Works(t.Context(), IPTables); err != nil {
		t.Errorf("STATUS says %v", err)
	}
	p, err := Prepare(t.Context(), IPTables, rs, rules.Families[:1])
	if err != nil {
		t.Fatal(err)
	}
	ns := nettest.StartNamespace(t, "alone")
	checkSaid(t, ns, applied(t, ns, p), "")
	if _, err := Prepare(t.Context(), IPTables, rs, rules.Families); err == nil {
		t.Error("a pod with both families is not refused")
	}
	if p, err := Prepare(t.Context(), Auto, rs, rules.Families); err != nil || p.Choice() != NFTables {
		t.Errorf("auto takes %v, %v for both families", p, err)
	}
}
