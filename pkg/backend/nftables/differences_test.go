package nftables

import (
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
)

// Whatever may have been done to a table is named, and only that.
func TestDifferencesAreNamed(t *testing.T) {
	t.Parallel()
	p := policy(manyRanges(50))
	p.Outbound.ExcludePorts = []redirect.Port{{Number: 22}, {Number: 5432}}
	rs := gated(p.Ruleset(), proxyUID)
	programmed := Compile(rs, rules.Families).String()
	for name, c := range map[string]struct {
		old, new string // what is done to the table's text, or with only new, what nft is told afterwards
		want     []string
	}{
		"nothing": {},
		"a rule is altered": {"redirect to :15003", "redirect to :15004", []string{
			`rule 1 of PROXY_IN_REDIRECT is meta l4proto tcp redirect to :15004 comment "inbound connections go to the proxy's inbound listener", not meta l4proto tcp redirect to :15003 comment "inbound connections go to the proxy's inbound listener"`}},
		"a target is altered": {`redirect to :15001 comment "outbound`, `redirect to :15001 random comment "outbound`, []string{
			`rule 1 of PROXY_REDIRECT is meta l4proto tcp [redir] comment "outbound connections go to the proxy's outbound listener", not meta l4proto tcp redirect to :15001 comment "outbound connections go to the proxy's outbound listener"`}},
		"a comment is altered": {"the proxy lives", "it lives", []string{
			`rule 1 of mangle-OUTPUT is meta skuid 1500 add @armed { meta mark & 0x00000000 } comment "it lives", not meta skuid 1500 add @armed { meta mark & 0x00000000 } comment "the proxy lives"`}},
		"a port is altered": {"{ 22, 5432 }", "{ 22, 5433 }", []string{
			`rule 1 of PROXY_OUTPUT is tcp dport { 22, 5433 } return comment "ports excluded by  (22, 5432)", not tcp dport { 22, 5432 } return comment "ports excluded by  (22, 5432)"`}},
		"a range is altered": {"11.0.7.0/28", "11.0.7.0/27", []string{
			`rule 2 of PROXY_OUTPUT is ip daddr { 11.0.7.0/27, 49 more } return comment "range excluded by the test", not ip daddr { 11.0.7.0/28, 49 more } return comment "range excluded by the test"`}},
		"ranges are gone": {"11.0.7.0/28, 11.0.8.0/28, ", "", []string{
			`rule 2 of PROXY_OUTPUT is ip daddr { 48 more } return comment "range excluded by the test", not ip daddr { 11.0.7.0/28, 11.0.8.0/28, 48 more } return comment "range excluded by the test"`}},
		"a rule is gone": {"\t\tmeta skuid 1500 add @armed { meta mark & 0x00000000 } comment \"the proxy lives\"\n", "", []string{
			`rule 1 of mangle-OUTPUT is missing: meta skuid 1500 add @armed { meta mark & 0x00000000 } comment "the proxy lives"`}},
		"a hook is altered": {"hook output priority -100", "hook output priority -99", []string{
			`chain nat-OUTPUT is "type nat hook output priority -99; policy accept;", not "type nat hook output priority -100; policy accept;"`}},
		"a policy is altered": {new: "chain inet detour mangle-OUTPUT { policy drop; }", want: []string{
			`chain mangle-OUTPUT is "type route hook output priority -150; policy drop;", not "type route hook output priority -150; policy accept;"`}},
		"the gate is altered": {"size 1;", "size 2;", []string{`set armed is "type mark; size 2; flags dynamic;", not "type mark; size 1; flags dynamic;"`}},
		"a rule is added": {new: "add rule inet detour PROXY_OUTPUT ip daddr { 1.1.1.1, 1.1.1.2 } counter meta priority set 1:2 accept", want: []string{
			`rule 8 of PROXY_OUTPUT is not detour's: ip daddr { 1.1.1.1, 1.1.1.2 } [counter] [meta] accept`}},
		"a chain is added":  {new: "add chain inet detour theirs", want: []string{"chain theirs is not detour's"}},
		"a set is added":    {new: "add set inet detour theirs { type ipv4_addr; }", want: []string{"set theirs is not detour's"}},
		"a chain is gone":   {new: "flush chain inet detour nat-PREROUTING; delete chain inet detour nat-PREROUTING", want: []string{"chain nat-PREROUTING is missing"}},
		"the table is gone": {new: "delete table inet detour", want: []string{"table inet detour is missing"}},
		"the gate is open":  {new: "add element inet detour armed { 0 }"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "altered")
			text, rest := strings.Replace(programmed, c.old, c.new, 1), ""
			if c.old == "" {
				text, rest = programmed, c.new
			}
			if c.old+c.new != "" && text+rest == programmed {
				t.Fatalf("%q is not in\n%s", c.old, programmed)
			}
			runNFT(t, ns, text, "-f", "-")
			runNFT(t, ns, rest, "-f", "-")
			if got := differences(t, ns, programmed); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestTextThatIsNoTableIsRefused(t *testing.T) {
	t.Parallel()
	good := Compile(policy(nil).Ruleset(), rules.Families).String()
	for _, bad := range []string{
		"", "table inet detour {\n}\n", strings.Replace(good, "detour", "theirs", 1), strings.TrimSuffix(good, "}\n"), good + "}\n", good + good,
		strings.Replace(good, "\t}\n", "", 1), strings.Replace(good, "\tchain PROXY_OUTPUT {\n", "", 1), strings.Replace(good, "\t\tmeta", "\tmeta", 1),
	} {
		if l, err := parseListing(bad); err == nil {
			t.Errorf("%q is taken for\n%s", bad, l)
		}
	}
}

func FuzzParseListing(f *testing.F) {
	f.Add(Compile(policy(manyRanges(2)).Ruleset(), rules.Families).String())
	f.Add(Compile(gated(policy(nil).Ruleset(), proxyUID), rules.Families[:1]).String())
	f.Add(Table{}.String())
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := parseListing(text); err == nil && l.String() != text {
			t.Errorf("%q is taken for %q", text, l)
		}
	})
}

// Whatever the kernel lists can be printed.
func FuzzPrintRule(f *testing.F) {
	for _, c := range Compile(gated(policy(manyRanges(2)).Ruleset(), proxyUID), rules.Families).chains {
		for _, r := range c.rules {
			f.Add(r.code)
		}
	}
	f.Add([]byte("\x07\xfelonger than 255 bytes are left"))
	f.Fuzz(func(t *testing.T, code []byte) {
		r := rule{code: code, sets: []set{{name: "__set0", of: &nft.Port}}}
		if first, second := r.String(), r.String(); first != second {
			t.Errorf("%q and %q", first, second)
		}
		nft.Comment(code)
	})
}
