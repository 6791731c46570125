package iptables

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func policy() redirect.OSM {
	return redirect.OSM{
		Chains: redirect.Chains{Inbound: "PROXY_INBOUND", InboundRedirect: "PROXY_IN_REDIRECT", Outbound: "PROXY_OUTPUT", OutboundRedirect: "PROXY_REDIRECT"},
		Proxy:  redirect.Proxy{UID: 1500, Inbound: 15003, Outbound: 15001, Admin: 15000},
	}
}

func TestApplyMendsWhateverItFinds(t *testing.T) {
	for name, mess := range map[string]string{
		"jumps that are there already, three times": `iptables -t nat -N PROXY_OUTPUT; for i in 1 2 3; do iptables -t nat -A OUTPUT -p tcp -j PROXY_OUTPUT; done`,
		"a jump of another form":                    `iptables -t nat -N PROXY_OUTPUT; iptables -t nat -A OUTPUT -p tcp -m comment --comment "a b" -j PROXY_OUTPUT`,
		"chains with other rules":                   `iptables -t nat -N PROXY_REDIRECT; iptables -t nat -A PROXY_REDIRECT -p tcp -j REDIRECT --to-ports 1`,
		"chains that jump into each other":          `iptables -t nat -N PROXY_REDIRECT; iptables -t nat -N PROXY_INBOUND; iptables -t nat -A PROXY_INBOUND -j PROXY_REDIRECT`,
		"half of the chains":                        `iptables -t nat -N PROXY_INBOUND; iptables -t nat -A PREROUTING -p tcp -j PROXY_INBOUND`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			forBoth(t, func(t *testing.T, b *Programs) {
				rs := policy().Ruleset()
				clean, messy := nettest.StartNamespace(t, "clean"), nettest.StartNamespace(t, "messy")
				mustApply(t, b, clean, rs)
				shell(t, b, messy, mess)
				mustApply(t, b, messy, rs)
				want, got := sortedRules(dump(t, b, clean, rules.IPv4)), sortedRules(dump(t, b, messy, rules.IPv4))
				if !slices.Equal(got, want) {
					t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
		})
	}
}

func TestRulesOfOthersStay(t *testing.T) {
	forBoth(t, func(t *testing.T, b *Programs) {
		ns := nettest.StartNamespace(t, "others")
		shell(t, b, ns, `iptables -t nat -N THEIRS
			iptables -t nat -A THEIRS -p tcp --dport 1 -j RETURN
			iptables -t nat -A OUTPUT -d 9.9.9.9 -m comment --comment "to -j PROXY_OUTPUT" -j THEIRS
			iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE
			iptables -t filter -A INPUT -p icmp -j DROP`)
		before := dump(t, b, ns, rules.IPv4)
		rs := policy().Ruleset()
		mustApply(t, b, ns, rs)
		for line := range strings.Lines(before) {
			if !strings.Contains(dump(t, b, ns, rules.IPv4), line) {
				t.Errorf("Apply lost %s", line)
			}
		}
		err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
			return b.Remove(ctx, lock, owned(rs))
		})
		if err != nil {
			t.Fatal(err)
		}
		if after := dump(t, b, ns, rules.IPv4); after != before {
			t.Errorf("Remove left\n%snot\n%s", after, before)
		}
	})
}

func TestARuleThatTheKernelRefusesLeavesNothingAndIsNamed(t *testing.T) {
	forBoth(t, func(t *testing.T, b *Programs) {
		ns := nettest.StartNamespace(t, "refused")
		rs := policy().Ruleset()
		rs.Rules = append(rs.Rules, rules.Rule{Chain: rs.Chains[0], Target: rules.Jump("NOWHERE")})
		err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
			return b.Apply(ctx, lock, owned(rs), nil)
		})
		if err == nil || !strings.Contains(err.Error(), "program IPv4 rules: iptables-"+string(b.variant)+"-restore") || !strings.Contains(err.Error(), "NOWHERE") {
			t.Errorf("got error %v, want one that names the program and the rule", err)
		}
		if got := dump(t, b, ns, rules.IPv4); strings.Contains(got, "PROXY") {
			t.Errorf("half a ruleset is left:\n%s", got)
		}
	})
}

func TestIPv6ThatFailsUndoesIPv4(t *testing.T) {
	forBoth(t, func(t *testing.T, b *Programs) {
		ns := nettest.StartNamespace(t, "undo")
		failing := &Programs{variant: b.variant, tools: map[rules.Family]tools{rules.IPv4: b.tools[rules.IPv4], rules.IPv6: b.tools[rules.IPv6]}}
		six := b.tools[rules.IPv6]
		six.restore = "/bin/false" // a kernel without IPv6 NAT is not to be had
		failing.tools[rules.IPv6] = six
		err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
			return failing.Apply(ctx, lock, owned(policy().Ruleset()), nil)
		})
		if err == nil || !strings.Contains(err.Error(), "program IPv6 rules") {
			t.Errorf("got error %v", err)
		}
		if got := dump(t, b, ns, rules.IPv4); strings.Contains(got, "PROXY") {
			t.Errorf("IPv4 is left:\n%s", got)
		}
	})
}

func TestNativeTableInTheWayUndoesIPv4(t *testing.T) {
	nettest.RequireProgram(t, "nft")
	b, err := find(defaultOf(t.Context()), Nft)
	if err != nil {
		t.Fatal(err)
	}
	ns := nettest.StartNamespace(t, "native")
	shell(t, b, ns, `nft 'add table ip6 nat; add chain ip6 nat OUTPUT { type filter hook output priority 0; }'`)
	err = testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
		return b.Apply(ctx, lock, owned(policy().Ruleset()), nil)
	})
	if err == nil || !strings.Contains(err.Error(), "IPv6") {
		t.Errorf("got error %v", err)
	}
	if got := dump(t, b, ns, rules.IPv4); strings.Contains(got, "PROXY") {
		t.Errorf("IPv4 is left:\n%s", got)
	}
}

func TestTheHostsXtablesLockIsNotTaken(t *testing.T) {
	host, err := os.OpenFile("/run/xtables.lock", os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close() })
	if err := unix.Flock(int(host.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	t.Run("held by another", func(t *testing.T) { // the group ends before the lock does
		forBoth(t, func(t *testing.T, b *Programs) {
			rs := policy().Ruleset()
			ns := nettest.StartNamespace(t, "lock")
			mustApply(t, b, ns, rs)
			err := testcase.Inside(t, ns, func(ctx context.Context, lock *os.File) error {
				if _, err := b.Differences(ctx, owned(rs)); err != nil {
					return err
				}
				return b.Remove(ctx, lock, owned(rs))
			})
			if err != nil {
				t.Error(err)
			}
		})
	})
}

func TestAProgramThatHangsEndsWithTheDeadlineAndGivesTheLockBack(t *testing.T) {
	ns := nettest.StartNamespace(t, "hang")
	hang := &Programs{variant: Nft, tools: map[rules.Family]tools{rules.IPv4: {restore: t.TempDir() + "/iptables-restore"}}}
	if err := os.WriteFile(hang.tools[rules.IPv4].restore, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	pod, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	lock, err := pod.Lock(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = pod.Do(func() error {
		return hang.Apply(ctx, lock, Compile(policy().Ruleset(), []rules.Family{rules.IPv4}), nil)
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "iptables-restore") {
		t.Errorf("got error %v, want the deadline and the program that hangs", err)
	}
	pod.Close()
	mustApply(t, mustFind(t), ns, policy().Ruleset())
}

func mustFind(t *testing.T) *Programs {
	t.Helper()
	b, err := Detect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
