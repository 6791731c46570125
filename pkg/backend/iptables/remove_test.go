package iptables

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/iptext"
	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

// theirs has something of somebody else's in every chain that is shared, ahead of detour's rules and alike.
const theirs = `for ipt in iptables ip6tables; do
	for table in raw mangle nat; do
		for chain in PREROUTING OUTPUT; do
			$ipt -t $table -N THEIRS-$chain
			$ipt -t $table -A THEIRS-$chain -p tcp --dport 1 -j RETURN
			$ipt -t $table -A $chain -p tcp --dport 1 -j THEIRS-$chain
			$ipt -t $table -A $chain -p udp -m comment --comment "like -j ISTIO_OUTPUT" -j RETURN
			$ipt -t $table -P $chain ACCEPT
		done
	done
	$ipt -t mangle -A OUTPUT -p tcp -m connmark --mark 0x53a -j CONNMARK --restore-mark
	$ipt -t filter -A INPUT -p icmp -j DROP
done`

// later comes between detour's rules and after them.
const later = `for ipt in iptables ip6tables; do
	for table in mangle nat; do
		for chain in PREROUTING OUTPUT; do
			$ipt -t $table -I $chain 3 -p tcp --dport 3 -j RETURN
			$ipt -t $table -A $chain -p tcp --dport 9 -j RETURN
		done
	done
done`

// Whatever stood there before, stands there afterwards: the rules of others, their order, their chains.
func TestRemovalLeavesTheRestAsItWas(t *testing.T) {
	for _, name := range []string{"osm/guide", "osm-v1/pod-ip", "osm-edge/local-dns-proxy", "istio/defaults", "istio/exclude-interfaces", "istio/everything-at-once"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			decision, err := testcase.Find(t, "../../..", name).Decide(t)
			if err != nil {
				t.Fatal(err)
			}
			rs := decision.Policy.Ruleset()
			forBoth(t, func(t *testing.T, b *Programs) {
				ns, untouched := nettest.StartNamespace(t, "left"), nettest.StartNamespace(t, "untouched")
				shell(t, b, untouched, theirs+"\n"+later)
				shell(t, b, ns, theirs)
				mustApply(t, b, ns, rs)
				shell(t, b, ns, later)
				mustRemove(t, b, ns, owned(rs))
				for _, f := range rules.Families {
					if got, want := dump(t, b, ns, f), dump(t, b, untouched, f); got != want {
						t.Errorf("%s is left as\n%snot\n%s", f, got, want)
					}
				}
				mustApply(t, b, ns, rs)
			})
		})
	}
}

func mustRemove(t *testing.T, b *Programs, ns *nettest.Namespace, own Tables) {
	t.Helper()
	err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error { return b.Remove(ctx, lock, own) })
	if err != nil {
		t.Fatal(err)
	}
}

// spoiled is a backend with some of its programs replaced by one that fails.
func spoiled(t *testing.T, v Variant, spoil func(*tools)) *Programs {
	t.Helper()
	b, err := find(defaultOf(t.Context()), v)
	if err != nil {
		t.Fatal(err)
	}
	b.tools = maps.Clone(b.tools)
	for f, all := range b.tools {
		spoil(&all)
		b.tools[f] = all
	}
	return b
}

func none(all *tools) { all.restore, all.save = "/bin/false", "/bin/false" }

// DEL starts no program for jumps, and for other rules of iptables-nft only the one that lists them.
func TestRemovalWithoutIptablesRestore(t *testing.T) {
	for _, c := range []struct {
		name    string
		variant Variant
		spoil   func(*tools)
	}{
		{"osm/guide", Nft, none},
		{"osm/guide", Legacy, none},
		{"istio/dns-capture", Nft, none},
		{"istio/dns-capture", Legacy, none},
		{"istio/everything-at-once", Nft, func(all *tools) { all.restore = "/bin/false" }},
	} {
		t.Run(c.name+"/"+string(c.variant), func(t *testing.T) {
			t.Parallel()
			decision, err := testcase.Find(t, "../../..", c.name).Decide(t)
			if err != nil {
				t.Fatal(err)
			}
			rs := decision.Policy.Ruleset()
			ns := nettest.StartNamespace(t, "handles")
			b := spoiled(t, c.variant, func(*tools) {})
			mustApply(t, b, ns, rs)
			mustRemove(t, spoiled(t, c.variant, c.spoil), ns, owned(rs))
			checkRemoval(t, b, ns, rs)
		})
	}
}

// The rules of others keep their counters and their targets, wherever their chains stand, but for what leads into ours.
func TestRemovalKeepsCountersAndTakesEveryJump(t *testing.T) {
	const script = `for ipt in iptables ip6tables; do
		for chain in A-FIRST Z-LAST; do
			$ipt -t nat -N $chain
			$ipt -t nat -A $chain -c 3 180 -p tcp --dport 3 -j RETURN
		done
		$ipt -t nat -A A-FIRST -c 4 240 -p tcp -j Z-LAST
		$ipt -t nat -A OUTPUT -c 5 300 -p tcp --dport 5 -g Z-LAST
		$ipt -t nat -A OUTPUT -c 6 360
		$ipt -t nat -A PREROUTING -c 7 420 -p udp -j A-FIRST
		$ipt -t nat -A POSTROUTING -c 8 480 -o eth9 -j MASQUERADE
	done`
	const into = `for ipt in iptables ip6tables; do
		$ipt -t nat -I Z-LAST -g PROXY_IN_REDIRECT
		$ipt -t nat -I OUTPUT -p tcp --dport 9 -j PROXY_REDIRECT
	done`
	forBoth(t, func(t *testing.T, b *Programs) {
		save := func(ns *nettest.Namespace) string {
			return shellOutput(t, b, ns, "for ipt in iptables ip6tables; do $ipt-save -c -t nat | grep -v '^#'; done")
		}
		rs := policy().Ruleset()
		ns := nettest.StartNamespace(t, "counters")
		shell(t, b, ns, script)
		before := save(ns)
		mustApply(t, b, ns, rs)
		shell(t, b, ns, into)
		mustRemove(t, spoiled(t, b.variant, none), ns, owned(rs))
		if after := save(ns); after != before {
			t.Errorf("got\n%snot\n%s", after, before)
		}
	})
}

// A rule that somebody else adds between the look and the deletion has handles and places no longer what they were.
func TestRulesThatChangeMeanwhileAreLookedAtAgain(t *testing.T) {
	b := spoiled(t, Nft, func(*tools) {})
	ns := nettest.StartNamespace(t, "meanwhile")
	rs := policy().Ruleset()
	mustApply(t, b, ns, rs)
	before := dump(t, b, ns, rules.IPv4)
	err := ns.Do(func() error {
		list, err := listChains(rules.Families, func(chain) bool { return true })
		if err != nil {
			return err
		}
		shell(t, b, ns, "iptables -t nat -I OUTPUT -p udp -j RETURN; iptables -t nat -D OUTPUT 1")
		return list.remove(list.chains, nil)
	})
	if !errors.Is(err, netlink.ErrChanged) {
		t.Errorf("got %v", err)
	}
	if after := dump(t, b, ns, rules.IPv4); after != before {
		t.Errorf("got\n%snot\n%s", after, before)
	}
}

// Where iptables lists a chain otherwise than the kernel does, places say nothing.
func TestPlacesAreTakenOnlyWhereBothListsAgree(t *testing.T) {
	ours := []iptext.SavedRule{{Line: "-A OUTPUT -o net1 -j RETURN"}}
	saved := append([]iptext.SavedRule{{Line: "-A OUTPUT -j THEIRS"}}, ours...)
	list := []handle{{into: "THEIRS"}, {}}
	got, err := byPlace(chain{}, list, saved, ours)
	if err != nil || !slices.EqualFunc(got, list[1:], func(a, b handle) bool { return a.into == b.into }) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, saved := range [][]iptext.SavedRule{nil, ours, append(saved, ours...)} {
		if got, err := byPlace(chain{family: rules.IPv4}, list, saved, ours); err == nil {
			t.Errorf("%v is taken for %v", saved, got)
		}
	}
}

// A rule of nft's own, which iptables can't list, has iptables refuse the table: then nothing is guessed.
func TestWhatIptablesCanNotListIsNotTouched(t *testing.T) {
	nettest.RequireProgram(t, "nft")
	b := spoiled(t, Nft, func(*tools) {})
	decision, err := testcase.Find(t, "../../..", "istio/exclude-interfaces").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	rs := decision.Policy.Ruleset()
	ns := nettest.StartNamespace(t, "native")
	mustApply(t, b, ns, rs)
	const foreign = "ct state new meta mark set ct mark"
	shell(t, b, ns, "nft insert rule ip nat OUTPUT "+foreign)
	err = testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error { return b.Remove(ctx, lock, owned(rs)) })
	left := shellOutput(t, b, ns, "nft list chain ip nat OUTPUT")
	if !strings.Contains(left, foreign) {
		t.Errorf("Remove (%v) leaves\n%s", err, left)
	}
	if strings.Contains(left, "ISTIO") == (err == nil) {
		t.Errorf("Remove says %v and leaves\n%s", err, left)
	}
}
