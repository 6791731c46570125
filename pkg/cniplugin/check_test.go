package cniplugin_test

import (
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// A jump that is there twice is in its right place, too.
func TestCheckFindsAJumpThatIsThereTwice(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		for ip, rule := range map[string]string{"ip": "OUTPUT -p tcp -j PROXY_OUTPUT", "ip6": "PREROUTING -p tcp -j PROXY_INBOUND"} {
			program := ip + "tables-" + backend
			t.Run(program, func(t *testing.T) {
				t.Parallel()
				nettest.RequireProgram(t, program)
				a := newAttachment(t, meshedPod(), meshConfig)
				a.conf["backend"] = "iptables"
				a.shell(privateLock + program + " -t nat -S") // a legacy table that is there decides for legacy
				a.must("ADD")
				a.must("CHECK")
				a.shell(privateLock + program + " -t nat -A " + rule)
				a.fails("CHECK", 101, "2 times")
				a.must("ADD")
				a.must("CHECK")
			})
		}
	}
}

// privateLock keeps the legacy programs off the lock that the whole host shares.
const privateLock = "export XTABLES_LOCKFILE=/proc/self/stat; "

// A namespace has one kind of tables, and those of IPv6 count as well.
func TestLegacyTablesOfEitherFamilyDecide(t *testing.T) {
	for _, program := range []string{"iptables-legacy", "ip6tables-legacy"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			nettest.RequireProgram(t, program)
			a := newAttachment(t, meshedPod(), meshConfig)
			a.shell(privateLock + program + " -t filter -S")
			a.must("ADD")
			a.must("CHECK")
			if got := a.logged()[0]["backend"]; got != "iptables-legacy" {
				t.Errorf("programmed by %v", got)
			}
		})
	}
}
