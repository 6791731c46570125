package nftables

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestARuleThatTheKernelRefusesChangesNothingAndIsNamed(t *testing.T) {
	t.Parallel()
	nowhere := rules.Rule{Chain: rules.Chain{Table: rules.Nat, Name: "PROXY_OUTPUT"}, Matches: []rules.Match{rules.TCP}, Target: rules.Jump("NOWHERE"), Why: "to fail"}
	rs := policy(nil).Ruleset()
	ns := nettest.StartNamespace(t, "refused")
	for _, before := range []func(){func() {}, func() { mustApply(t, ns, rs, rules.Families) }} {
		before()
		was := runNFT(t, ns, "", "--stateless", "list", "ruleset")
		broken := rs
		broken.Rules = append([]rules.Rule{rs.Rules[0], nowhere}, rs.Rules[1:]...)
		err := ns.Do(func() error { return Apply(Compile(broken, rules.Families)) })
		want := "program table inet detour: program rule `PROXY_OUTPUT meta l4proto tcp jump NOWHERE comment \"to fail\"`: no such file or directory"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if is := runNFT(t, ns, "", "--stateless", "list", "ruleset"); is != was {
			t.Errorf("the failure changes\n%sto\n%s", was, is)
		}
	}
}

func TestTheKernelsOwnWordsAreTold(t *testing.T) {
	t.Parallel()
	name := strings.Repeat("x", 300)
	ns := nettest.StartNamespace(t, "words")
	err := ns.Do(func() error {
		return Apply(Compile(rules.Ruleset{Chains: []rules.Chain{{Table: rules.Nat, Name: name}}}, rules.Families))
	})
	want := "program table inet detour: make chain " + name + ": numerical result out of range (the kernel says: "
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// The kernel says where an expression that it lacks is in the message, and nothing else.
func TestAnExpressionThatTheKernelLacksIsFound(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "lacks")
	table := Compile(policy(nil).Ruleset(), rules.Families)
	table.chains[2].rules[0].add("warp")
	var r *nft.Refused
	err := ns.Do(func() error { return Apply(table) })
	if !errors.As(err, &r) || r.Errno != unix.ENOENT || r.Expression != "warp" || !strings.Contains(err.Error(), "[warp]") {
		t.Fatalf("got %v", err)
	}
}

// The test above shows that the kernel answers in this way. One that points at no expression is Linux 4.15.
func TestWhatTheKernelLacksIsNamed(t *testing.T) {
	t.Parallel()
	for _, l := range lacks {
		m, expression, says := message{verb: makeTable}, "", ": it has no "
		kind, isChain := strings.CutPrefix(l.what, "chain ")
		switch {
		case isChain:
			m = message{verb: "make", chain: &chain{hook: &hook{kind: kind}}}
		case l.what != "table":
			m, expression = message{"program", &chain{}, &rule{}}, l.what
			unnamed := message{"program", &chain{}, &rule{}}
			unnamed.rule.add(l.what)
			checkExplained(t, unnamed, "", l, ": perhaps it has no ")
		}
		checkExplained(t, m, expression, l, says)
	}
	own := explain(&nft.Refused{About: message{verb: "make", chain: &chain{}}, Refusal: &netlink.Refusal{Errno: unix.EOPNOTSUPP}})
	if strings.Contains(own.Error(), "it has no") {
		t.Errorf("a chain of the mesh's: %v", own)
	}
}

func checkExplained(t *testing.T, m message, expression string, l lack, says string) {
	t.Helper()
	err := explain(&nft.Refused{About: m, Expression: expression, Refusal: &netlink.Refusal{Errno: l.errno}})
	if !strings.HasSuffix(err.Error(), says+l.needs) || !errors.Is(err, l.errno) {
		t.Errorf("%s: %v", l.what, err)
	}
}

func TestTablesOfOthersStay(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "others")
	runNFT(t, ns, "table inet theirs { chain detour { type nat hook output priority -100; tcp dport 1 redirect to :2; }; }", "-f", "-")
	before := runNFT(t, ns, "", "list", "ruleset")
	rs := policy(nil).Ruleset()
	table := mustApply(t, ns, rs, rules.Families)
	if found := differences(t, ns, table.String()); found != nil {
		t.Error(found)
	}
	if !strings.Contains(runNFT(t, ns, "", "list", "ruleset"), before) {
		t.Error("Apply changes another's table")
	}
	within(t, ns, Remove)
	if after := runNFT(t, ns, "", "list", "ruleset"); after != before {
		t.Errorf("Remove leaves\n%snot\n%s", after, before)
	}
}

// Without a listener TPROXY drops the connection, as with iptables: it does not pass the proxy by.
func TestWithoutATransparentListenerConnectionsEnd(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, build(t, testcase.Find(t, "../../..", "istio/tproxy")), rules.Families)
	checkPackets(t, w, "in4 8080 -> error: timeout\nin6 8080 -> error: timeout\nin 15020 -> app")
}

// ACCEPT and RETURN end what iptables calls a table, and no more than that.
func TestAVerdictEndsOneTable(t *testing.T) {
	t.Parallel()
	output := func(table rules.Table, target rules.Target, m ...rules.Match) rules.Rule {
		return rules.Rule{Chain: rules.Chain{Table: table, Name: rules.Output}, Matches: m, Target: target}
	}
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, rules.Ruleset{Rules: []rules.Rule{
		output(rules.Raw, rules.Accept{}, rules.TCP, rules.DstPort{Port: 80}),
		output(rules.Raw, rules.Drop{}, rules.TCP, rules.DstPort{Port: 80}),
		output(rules.Mangle, rules.Return{}, rules.TCP, rules.DstPort{Port: 80}),
		output(rules.Mangle, rules.Drop{}, rules.TCP, rules.DstPort{Port: 80}),
		output(rules.Nat, rules.Redirect(15001), rules.TCP),
	}}, rules.Families)
	checkPackets(t, w, proxied, 15001)
}

// A mark that is set in OUTPUT has the packet routed anew: here into the pod, where nobody listens.
func TestAMarkIsSeenByRouting(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	mustApply(t, w.Pod, rules.Ruleset{
		Rules: []rules.Rule{{Chain: rules.Chain{Table: rules.Mangle, Name: rules.Output}, Matches: []rules.Match{rules.TCP, rules.DstPort{Port: 80}}, Target: rules.SetMark(5)}},
		Setup: rules.Setup{Routes: []rules.LocalRoute{{Mark: 5, Table: 105}}},
	}, rules.Families)
	checkPackets(t, w, "out [2001:db8::1]:80 -> error: refused\nout [2001:db8::1]:81 -> outside")
}

func TestOneFamilyLeavesTheOtherAlone(t *testing.T) {
	t.Parallel()
	for f, want := range map[rules.Family]string{
		rules.IPv4: "out 1.1.1.1:80 -> proxy 15001\nout [2001:db8::1]:80 -> outside",
		rules.IPv6: "out 1.1.1.1:80 -> outside\nout [2001:db8::1]:80 -> proxy 15001",
	} {
		w := nettest.StartWorld(t)
		mustApply(t, w.Pod, policy(nil).Ruleset(), []rules.Family{f})
		checkPackets(t, w, want, 15001)
	}
}

// Comments are cut, and nothing in them ends them.
func TestComments(t *testing.T) {
	t.Parallel()
	why := `a "quote" and
a line` + strings.Repeat(" that goes on", 20)
	rs := policy([]redirect.Range{{Prefix: manyRanges(1)[0].Prefix, Origin: why}}).Ruleset()
	ns := nettest.StartNamespace(t, "comments")
	checkTable(t, ns, rs, rules.Families)
	if got := listed(t, ns); !strings.Contains(got, `comment "range excluded by a 'quote' and a line that`) || !strings.Contains(got, ` goes on that..."`) {
		t.Errorf("got\n%s", got)
	}
}
