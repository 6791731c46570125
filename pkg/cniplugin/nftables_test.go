package cniplugin_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newNFTables is an attachment that is programmed by nftables.
func newNFTables(t testing.TB, manifests ...string) *attachment {
	t.Helper()
	a := newAttachment(t, manifests...)
	a.conf["backend"] = "nftables"
	return a
}

// table is detour's nftables table.
func (a *attachment) table() string { return a.output("nft", "list", "table", "inet", "detour") }

// noTable expects that there is no nftables table.
func (a *attachment) noTable() {
	a.t.Helper()
	if tables := a.output("nft", "list", "tables"); strings.Contains(tables, "detour") {
		a.t.Errorf("there is a table of detour: %s", tables)
	}
}

func TestNFTablesFromAddToDel(t *testing.T) {
	t.Parallel()
	a := newNFTables(t, meshedPod(), meshConfig)
	a.must("ADD")
	first := a.table()
	if !strings.Contains(first, "chain PROXY_OUTPUT") || !strings.Contains(first, "redirect to :15001") {
		t.Errorf("the table is\n%s", first)
	}
	if got := a.rules(4); len(got) > 0 {
		t.Errorf("iptables has %q", got)
	}
	a.must("CHECK")
	a.must("ADD")
	if again := a.table(); again != first {
		t.Errorf("another ADD changes\n%sto\n%s", first, again)
	}
	if line := a.logged()[0]; line["backend"] != "nftables" || line["rules"] == 0.0 {
		t.Errorf("the log says %v", line)
	}
	a.must("DEL")
	a.must("DEL")
	a.noTable()
	a.untouched()
}

func TestNFTablesCheckNamesTheFirstDifference(t *testing.T) {
	for name, c := range map[string]struct{ tamper, want string }{
		"a chain was emptied": {"nft flush chain inet detour PROXY_OUTPUT", "rule 1 of PROXY_OUTPUT is missing"},
		"a rule was added":    {"nft add rule inet detour PROXY_INBOUND tcp dport 22 accept", "PROXY_INBOUND is not detour's: tcp dport 22 accept"},
		"the table is gone":   {"nft delete table inet detour", "missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newNFTables(t, meshedPod(), meshConfig)
			a.must("ADD")
			a.shell(c.tamper)
			a.fails("CHECK", 101, "pod shop/web: ", c.want)
			if err := os.RemoveAll(a.path("state")); err != nil {
				t.Fatal(err)
			}
			a.fails("CHECK", 101, "pod shop/web: ", c.want)
			a.must("ADD")
			a.must("CHECK")
		})
	}
}

func TestDelWithoutStateRemovesTheTableAsWell(t *testing.T) {
	t.Parallel()
	a := newNFTables(t, meshedPod(), meshConfig)
	a.must("ADD")
	if err := os.RemoveAll(a.path("state")); err != nil {
		t.Fatal(err)
	}
	delete(a.conf, "backend")
	a.must("DEL")
	a.noTable()
}

func TestAnAddWithTheOtherBackendTakesTheFirstOnesRulesOut(t *testing.T) {
	t.Parallel()
	a := newNFTables(t, meshedPod(), meshConfig)
	a.must("ADD")
	a.conf["backend"] = "iptables"
	a.must("ADD")
	a.must("CHECK")
	a.noTable()
	a.conf["backend"] = "nftables"
	a.must("ADD")
	a.must("CHECK")
	if got := a.rules(4); len(got) > 0 {
		t.Errorf("iptables still has %q", got)
	}
	a.must("DEL")
	a.noTable()
}

func TestAutoTakesNFTablesOnAHostWithoutIPTables(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["PATH"] = "/nonexistent"
	a.must("STATUS")
	a.must("ADD")
	a.must("CHECK")
	a.table()
	a.must("DEL")
	a.noTable()
}

// Programs that are there and fail, as where the kernel lacks what they need: no pod has to wait for somebody to notice.
func TestAutoTakesNFTablesWhereIPTablesFails(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.env["PATH"] = failingRestore(t) + ":" + os.Getenv("PATH")
	a.must("STATUS")
	a.must("ADD")
	a.must("CHECK")
	a.table()
	if line := a.logged()[0]; line["level"] != "WARN" || line["backend"] != "nftables" || !strings.Contains(fmt.Sprint(line["warnings"]), "no such target") {
		t.Errorf("the log says %v", line)
	}
	a.must("DEL")
	a.noTable()
	a.conf["backend"] = "iptables"
	a.fails("STATUS", 50, "iptables")
	a.fails("ADD", 999, "no such target")
	a.untouched()
}

func TestAutoTakesNFTablesForLongLists(t *testing.T) {
	t.Parallel()
	var ranges []string
	for i := range 600 {
		ranges = append(ranges, fmt.Sprintf("10.%d.%d.0/24", 2*(i/100), 2*(i%100)))
	}
	long := strings.Replace(meshConfig, "outboundPortExclusionList", "outboundIPRangeExclusionList: ["+strings.Join(ranges, ", ")+"], outboundPortExclusionList", 1)
	a := newAttachment(t, meshedPod(), long)
	a.must("ADD")
	a.must("CHECK")
	if table := a.table(); !strings.Contains(table, "10.10.198.0/24") {
		t.Errorf("the table is\n%s", table)
	}
	a.conf["backend"] = "iptables"
	a.must("ADD")
	a.must("CHECK")
	a.noTable()
}

const afterProxyStart = `metadata: {namespace: shop, name: web, uid: uid-1, annotations: {detour.io/redirect-after-proxy-start: `

func TestRedirectionAfterTheProxysStartTakesNFTables(t *testing.T) {
	asks := strings.Replace(meshedPod(), "metadata: {namespace: shop, name: web, uid: uid-1", afterProxyStart+`"true"}`, 1)
	declines := strings.Replace(meshedPod(), "metadata: {namespace: shop, name: web, uid: uid-1", afterProxyStart+`"false"}`, 1)
	for name, c := range map[string]struct {
		pod   string
		conf  map[string]any
		gated bool
	}{
		"the pod asks":                         {asks, nil, true},
		"the mesh asks":                        {meshedPod(), map[string]any{"redirectAfterProxyStart": true}, true},
		"the mesh asks, and the pod does not":  {declines, map[string]any{"redirectAfterProxyStart": true, "backend": "nftables"}, false},
		"the pod asks, and so does the mesh":   {asks, map[string]any{"redirectAfterProxyStart": true}, true},
		"nobody asks, and nftables is there":   {meshedPod(), map[string]any{"backend": "nftables"}, false},
		"the pod asks, and nftables is chosen": {asks, map[string]any{"backend": "nftables"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, c.pod, meshConfig)
			maps.Copy(a.conf, c.conf)
			a.must("ADD")
			a.must("CHECK")
			if gated := strings.Contains(a.table(), "@armed"); gated != c.gated {
				t.Errorf("gated is %v:\n%s", gated, a.table())
			}
		})
	}
	t.Run("iptables is chosen", func(t *testing.T) {
		t.Parallel()
		a := newAttachment(t, asks, meshConfig)
		a.conf["backend"] = "iptables"
		a.fails("ADD", 999, "needs backend nftables, but iptables is chosen")
		a.untouched()
		a.conf["redirectAfterProxyStart"] = true
		a.fails("ADD", 7, "redirectAfterProxyStart: it takes nftables, and backend is iptables")
	})
}

// The node agent's record of a pod that it has repaired serves the pod's CHECK, whatever the net conf's backend.
func TestCheckOfAPodThatTheAgentRepaired(t *testing.T) {
	t.Parallel()
	a := newNFTables(t, meshedPod(), meshConfig)
	a.must("ADD")
	repaired := a.path("state/attachments/detour-repair")
	if err := os.MkdirAll(repaired, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(a.path("state/attachments/net/c1@eth0.json"), filepath.Join(repaired, "uid-1@eth0.json")); err != nil {
		t.Fatal(err)
	}
	a.conf["backend"] = "iptables"
	a.must("CHECK")
	net1 := a.another("net1", "192.168.7.2/24")
	net1.conf["backend"] = "nftables"
	net1.must("ADD")
	net1.must("DEL")
	a.must("CHECK")
	a.must("DEL")
	a.empty()
}
