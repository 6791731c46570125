package backend

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

const (
	earlierRules = `{"IPv4":"*nat\n:PROXY - [0:0]\n-A OUTPUT -p tcp -j PROXY\n-A PROXY -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"}`
	earlierTable = `"add table inet detour\ndelete table inet detour\ntable inet detour {\n\tchain nat-OUTPUT {\n` +
		`\t\ttype nat hook output priority -100; policy accept;\n\t\tmeta l4proto tcp redirect to :15001 comment \"why\"\n\t}\n}\n"`

	byIPTables = `iptables -t nat -N PROXY; iptables -t nat -A OUTPUT -p tcp -j PROXY; iptables -t nat -A PROXY -p tcp -j REDIRECT --to-ports 15001; `
	byNFT      = `nft 'table inet detour { chain nat-OUTPUT { type nat hook output priority -100; meta l4proto tcp redirect to :15001 comment "why"; }; }'; `
	isEmpty    = `! { iptables -t nat -S; nft list table inet detour; } 2>/dev/null | grep -e PROXY -e detour`
)

// A node is upgraded while its pods run: what earlier versions wrote down is counted, checked and removed.
func TestPodsOfEarlierVersions(t *testing.T) {
	for name, c := range map[string]struct {
		backend string
		script  string
		record  string
		checked bool
	}{
		"iptables-nft":    {"iptables-nft", byIPTables, `{"backend":"iptables-nft","families":["IPv4"],"rules":` + earlierRules + `}`, true},
		"iptables-legacy": {"iptables-legacy", byIPTables, `{"backend":"iptables-legacy","families":["IPv4"],"rules":` + earlierRules + `}`, true},
		"nftables":        {"nftables", byNFT, `{"backend":"nftables","families":["IPv4","IPv6"],"table":` + earlierTable + `}`, true},
		"stale": {"iptables-legacy", byIPTables, `{"backend":"nftables","families":["IPv4","IPv6"],"table":` + earlierTable +
			`,"stale":[{"backend":"iptables-legacy","families":["IPv4"],"rules":` + earlierRules + `}]}`, false},
		"stale of any backend, iptables": {"iptables-nft", byIPTables, `{"stale":[{"families":["IPv4"],"rules":` + earlierRules + `}]}`, false},
		"stale of any backend, nftables": {"nftables", byNFT, `{"stale":[{"families":["IPv4"],"rules":` + earlierRules + `}]}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "earlier")
			shell(t, ns, c.backend, c.script)
			var r attachment.Record
			if err := json.Unmarshal([]byte(c.record), &r); err != nil {
				t.Fatal(err)
			}
			if n := RuleCount(r); c.checked && n == 0 {
				t.Error("the record has no rules")
			}
			if c.checked {
				checkSaid(t, ns, r, "")
			}
			if err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error { return Remove(ctx, lock, r) }); err != nil {
				t.Fatal(err)
			}
			shell(t, ns, c.backend, isEmpty)
		})
	}
}
