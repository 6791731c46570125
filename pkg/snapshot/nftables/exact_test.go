package nftables_test

import (
	"strings"
	"testing"
)

// Where nft 1.0.6 is no judge, because it leaves something out or says it wrong.
func TestReadSaysWhatNftLoses(t *testing.T) {
	t.Parallel()
	for rules, want := range map[string]string{
		"table ip a { set s { type mark; flags timeout; elements = { 5 timeout 1d expires 23h }; }; }": `"elem": [{"elem": {"val": 5, "timeout": 86400, "expires": 82`,
		"table ip a { flags dormant; }": `"name": "a", "handle": 1, "flags": "dormant"`,
		"table netdev a { chain c { type filter hook ingress device lo priority 0; }; }": `"dev": "lo"`,
		"table inet a { chain c { meta nfproto ipv4 meta l4proto tcp reject with tcp reset; }; }": `{"meta": {"key": "nfproto"}}, "right": "ipv4"}}, ` +
			`{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"reject": {"type": "tcp reset"}}`,
		"table ip a { chain c { ip saddr . ip version { 10.0.0.1 . 4 } accept; }; }": `"left": {"concat": [{"payload": {"protocol": "ip", "field": "saddr"}}, ` +
			`{"payload": {"protocol": "ip", "field": "version"}}]}, "right": {"set": [{"concat": ["10.0.0.1", 4]}]}`,
		"table ip a { set s { type ct_state . ipv4_addr; elements = { established | related . 10.0.0.2 }; }; }": `"elem": [{"concat": [{"|": ["established", "related"]}, "10.0.0.2"]}]`,
		"table ip a { map m { type ipv4_addr : mark; size 9; flags dynamic; }; chain c { add @m { ip saddr : meta mark }; }; }": `"expr": [{"map": {"op": "add", ` +
			`"elem": {"payload": {"protocol": "ip", "field": "saddr"}}, "data": {"meta": {"key": "mark"}}, "map": "@m"}}]`,
		"table ip a { chain c { jump { ip saddr 10.0.0.1 accept; }; }; }": `"expr": [{"jump": {"target": "__chain`,
		"table ip a { chain c { iifgroup 0 rt classid 0 accept; }; }":     `"iifgroup"}}, "right": 0}}, {"match": {"op": "==", "left": {"rt": {"key": "classid"}}, "right": "0"}}`,
		"table ip a { chain c { meta mark >= 5 meta cpu <= 6 accept; }; }": `{"op": ">=", "left": {"meta": {"key": "mark"}}, "right": 5}}, ` +
			`{"match": {"op": "<=", "left": {"meta": {"key": "cpu"}}, "right": 6}}`,
	} {
		ns := start(t, "exact")
		run(t, ns, rules+"\n", "nft", "-f", "-")
		if got := string(read(t, ns, nil)); !strings.Contains(got, want) {
			t.Errorf("%s is\n%swithout %s", rules, got, want)
		}
	}
}

// iptables-nft's rules in a table of another name are nft's, and so are the extensions in them.
func TestExtensionsOfIptablesHaveTheirNames(t *testing.T) {
	t.Parallel()
	ns := start(t, "xt")
	run(t, ns, "", "iptables-nft", "-A", "OUTPUT", "-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MARK", "--set-mark", "5")
	judge(t, ns)
	if got := string(read(t, ns, nil)); !strings.Contains(got, `{"xt": {"type": "match", "name": "statistic"}}`) {
		t.Error(got)
	}
}
