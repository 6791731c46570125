package iptsave

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/trace"
)

// one reads a rule of OUTPUT in table filter.
func one(t *testing.T, rule string, sets map[string]*IPSet) *trace.Rule {
	t.Helper()
	tables, err := Read([]byte("*filter\n-A OUTPUT "+rule+"\nCOMMIT\n"), trace.IP, Unnamed, sets)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := tables[0].Chain("OUTPUT").Rules()
	if err != nil || len(rules) != 1 {
		t.Fatal(rules, err)
	}
	return rules[0]
}

// unknowns are what the walk will not know of a rule.
func unknowns(r *trace.Rule) (all []string) {
	for _, s := range r.Statements {
		switch s := s.(type) {
		case trace.UnknownMatch:
			all = append(all, s.Text)
		case trace.UnknownEffect:
			all = append(all, s.Text)
		default:
		}
	}
	return all
}

// What is not known of a module is one condition, with all its options; what is known of others stays known.
func TestWhatIsNotKnownIsOneCondition(t *testing.T) {
	for rule, want := range map[string]string{
		"-p tcp -m tcp --dport 80 -j ACCEPT":                                                  "",
		"-m recent --rcheck --seconds 10 --name A --mask 255.255.255.255 --rsource -j ACCEPT": "-m recent --rcheck --seconds 10 --name A --mask 255.255.255.255 --rsource",
		"-m recent --set --name A --rsource -j ACCEPT":                                        "",
		"-m foo --bar 1 ! --baz 2 3 -m comment --comment \"x y\" -j ACCEPT":                   "-m foo --bar 1 ! --baz 2 3",
		"-m foo -j ACCEPT":                        "-m foo",
		"-m foo [unknown] -j ACCEPT":              "-m foo [unknown]",
		"-m set --match-set A src -j ACCEPT":      "-m set --match-set A src",
		"-m tcp --dport http -j ACCEPT":           "-m tcp --dport http",
		"-j FOO --bar 1":                          "-j FOO --bar 1",
		"-j FOO [unknown]":                        "-j FOO [unknown]",
		"-j DNAT --to-destination 10.0.0.1 --bar": "-j DNAT --bar",
		"-m comment --comment \"no end":           "-m comment --comment \"no end",
		"-j LOG --log-prefix \"a b\"":             "",
	} {
		if got := strings.Join(unknowns(one(t, rule, nil)), " | "); got != want {
			t.Errorf("%s: unknown is %q, want %q", rule, got, want)
		}
	}
}

func TestCommentsLeaveTheText(t *testing.T) {
	r := one(t, `-p tcp -m comment --comment "a \"b\" c" -m tcp --dport 80 -j ACCEPT`, nil)
	if r.Text != "-p tcp -m tcp --dport 80 -j ACCEPT" || r.Comment != `a "b" c` {
		t.Errorf("%q # %q", r.Text, r.Comment)
	}
}

func TestElementsOfIPSets(t *testing.T) {
	sets, err := ReadSets([]byte(`create A hash:ip,port family inet hashsize 1024 maxelem 65536
add A 10.0.0.6,tcp:7000
create N hash:net family inet
add N 10.0.0.0/24
create X hash:net family inet
add X 10.0.0.0/24 nomatch
create L list:set size 8
create P bitmap:port range 0-65535
add P 80-90
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		rule, to string
		want     trace.Outcome
	}{
		{"-m set --match-set A dst,dst -j DROP", "10.0.0.6:7000", trace.Dropped},
		{"-m set --match-set A dst,dst -j DROP", "10.0.0.6:7001", trace.Accepted},
		{"-m set ! --match-set A dst,dst -j DROP", "10.0.0.6:7001", trace.Dropped},
		{"-m set --match-set N dst -j DROP", "10.0.0.255:1", trace.Dropped},
		{"-m set --match-set N src -j DROP", "10.0.0.255:1", trace.Accepted},
		{"-m set --match-set P dst -j DROP", "10.0.0.255:85", trace.Dropped},
		{"-m set --match-set X dst -j DROP", "10.0.0.1:1", trace.Unknown},
		{"-m set --match-set L dst -j DROP", "10.0.0.1:1", trace.Unknown},
		{"-m set --match-set GONE dst -j DROP", "10.0.0.1:1", trace.Unknown},
	} {
		rule := one(t, test.rule, sets)
		r, err := trace.Walk(&trace.Namespace{Tables: []*trace.Table{rule.Chain.Table}}, sent(test.to))
		if err != nil || r.Ways[0].Verdict != test.want {
			t.Errorf("%s to %s: %v, want %s: %v", test.rule, test.to, r.Ways, test.want, err)
		}
	}
	for _, bad := range []string{"destroy A", "add GONE 10.0.0.1", "create A"} {
		if _, err := ReadSets([]byte(bad)); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func sent(to string) trace.Packet {
	return trace.Packet{
		Direction: trace.Out, Protocol: unix.IPPROTO_TCP, ToInterface: "eth0",
		Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort(to),
	}
}

// Whatever the text, reading it and walking through it ends without a panic.
func FuzzRead(f *testing.F) {
	for _, path := range []string{"master", "node"} {
		text, err := os.ReadFile("../../../testdata/guides/node-path-forward-drop/" + path + ".iptables-save")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("*mangle\n-A OUTPUT ! -s 10.0.0.0/255.0.255.0 -m set --match-set A src -j TPROXY --on-port 1 --tproxy-mark 1/2\n-A OUTPUT -j CONNMARK --save-mark --nfmask 1\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		tables, err := Read([]byte(text), trace.IP, Unnamed, nil)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %v", err)
			}
			return
		}
		_, _ = trace.Walk(&trace.Namespace{Tables: tables}, sent("10.108.94.160:80"))
	})
}
