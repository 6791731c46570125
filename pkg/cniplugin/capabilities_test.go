package cniplugin_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// A runtime starts plugins with all of root's capabilities. The plugin needs two of them, three with legacy iptables; without one of
// them its error says which.
func TestWhichCapabilitiesThePluginNeeds(t *testing.T) {
	nettest.RequireProgram(t, "setpriv")
	t.Parallel()
	for name, tt := range map[string]struct {
		backend, iptables, capabilities string
		says                            string
	}{
		"nftables":                      {"nftables", "", "+sys_admin,+net_admin", ""},
		"iptables-nft":                  {"iptables", "nft", "+sys_admin,+net_admin", ""},
		"iptables-legacy":               {"iptables", "legacy", "+sys_admin,+net_admin,+net_raw", ""},
		"nftables, no SYS_ADMIN":        {"nftables", "", "+net_admin", "CAP_SYS_ADMIN"},
		"nftables, no NET_ADMIN":        {"nftables", "", "+sys_admin", "CAP_NET_ADMIN"},
		"iptables-nft, no SYS_ADMIN":    {"iptables", "nft", "+net_admin", "CAP_SYS_ADMIN"},
		"iptables-nft, no NET_ADMIN":    {"iptables", "nft", "+sys_admin", "CAP_NET_ADMIN"},
		"iptables-legacy, no NET_RAW":   {"iptables", "legacy", "+sys_admin,+net_admin", "CAP_NET_RAW"},
		"iptables-legacy, no NET_ADMIN": {"iptables", "legacy", "+sys_admin,+net_raw", "CAP_NET_ADMIN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			a.conf["backend"] = tt.backend
			if tt.iptables == "legacy" {
				a.env["PATH"] = legacyPath(t)
			}
			cmd := a.command("ADD")
			cmd.Args = append([]string{"setpriv", "--inh-caps=-all", "--bounding-set=-all," + tt.capabilities, cmd.Path}, cmd.Args[1:]...)
			var err error
			if cmd.Path, err = exec.LookPath("setpriv"); err != nil {
				t.Fatal(err)
			}
			out, err := cmd.CombinedOutput()
			t.Logf("%s", out)
			if (err == nil) != (tt.says == "") || !strings.Contains(string(out), tt.says) {
				t.Errorf("%v, want %q", err, tt.says)
			}
			a.must("DEL")
		})
	}
}
