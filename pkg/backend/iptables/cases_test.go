package iptables

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
	"github.com/detour-cni/detour/pkg/verify"
)

// Every scenario with rules, for real: what the kernel lists, where the packets end, that a second run changes nothing,
// and that removal leaves nothing.
func TestEveryCaseInTheKernel(t *testing.T) {
	nettest.RequireNetns(t)
	for _, c := range testcase.Load(t, "../../..") {
		if c.Section("want.iptables") == "" {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			forBoth(t, func(t *testing.T, b *Backend) { checkCase(t, b, c) })
		})
	}
}

func checkCase(t *testing.T, b *Backend, c testcase.Case) {
	decision, err := c.Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	packets, err := nettest.ParsePackets(c.Section("packets"))
	if err != nil {
		t.Fatal(err)
	}
	rs := rules.Build(decision.Policy)
	world := nettest.StartWorld(t)
	mustApply(t, b, world.Pod, rs)

	first := map[rules.Family]string{}
	for f, section := range map[rules.Family]string{rules.IPv4: "want.iptables", rules.IPv6: "want.ip6tables"} {
		first[f] = dump(t, b, world.Pod, f)
		if want, got := sortedRules(c.Section(section)), sortedRules(first[f]); !slices.Equal(want, got) {
			t.Errorf("the kernel lists for %s\n%s, not\n%s", f, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		checkList(t, b, world.Pod, f, c.Section(section))
	}
	nettest.CheckPackets(t, world, packets, decision.Policy.Proxy.Outbound, decision.Policy.Proxy.Inbound)

	mustApply(t, b, world.Pod, rs)
	for f, want := range first {
		if got := dump(t, b, world.Pod, f); got != want {
			t.Errorf("a second run changes %s from\n%sto\n%s", f, want, got)
		}
	}
	checkRemoval(t, b, world.Pod, rs)
}

// sortedRules are the rules of a dump, by chain, each chain's in its own order.
func sortedRules(dump string) []string {
	var out []string
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "-A") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	slices.SortStableFunc(out, func(a, b string) int {
		return strings.Compare(strings.Fields(a)[1], strings.Fields(b)[1])
	})
	return out
}

// checkList reads the rules back the way CHECK does.
func checkList(t *testing.T, b *Backend, ns *nettest.Namespace, f rules.Family, restore string) {
	t.Helper()
	want, err := rules.ParseSave(restore)
	if err != nil {
		t.Fatal(err)
	}
	err = ns.Do(func() error {
		got, err := b.List(f, want.Chains)
		for _, d := range verify.Differences(f, want, got) {
			t.Errorf("CHECK finds %s", d)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkRemoval(t *testing.T, b *Backend, ns *nettest.Namespace, rs rules.Ruleset) {
	t.Helper()
	for range 2 { // the second time there is nothing to remove
		err := inside(t, ns, func(ctx context.Context, lock *os.File) error {
			return b.Remove(ctx, lock, rs.Chains, rules.Families)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range rules.Families {
		if got := dump(t, b, ns, f); strings.Contains(got, "-A") || strings.Contains(got, "PROXY") {
			t.Errorf("after removal %s still has\n%s", f, got)
		}
	}
}

// guide is what the published troubleshooting guide shows of osm-init's command, with its examples' exclusions.
const guide = `iptables -t nat -N PROXY_INBOUND && iptables -t nat -N PROXY_IN_REDIRECT && iptables -t nat -N PROXY_OUTPUT && iptables -t nat -N PROXY_REDIRECT && iptables -t nat -A PROXY_REDIRECT -p tcp -j REDIRECT --to-port 15001 && iptables -t nat -A PROXY_REDIRECT -p tcp --dport 15000 -j ACCEPT && iptables -t nat -A OUTPUT -p tcp -j PROXY_OUTPUT && iptables -t nat -A PROXY_OUTPUT -m owner --uid-owner 1500 -j RETURN && iptables -t nat -A PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN && iptables -t nat -A PROXY_OUTPUT -j PROXY_REDIRECT && iptables -t nat -A PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port 15003 && iptables -t nat -A PREROUTING -p tcp -j PROXY_INBOUND && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15010 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15901 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15902 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp --dport 15903 -j RETURN && iptables -t nat -A PROXY_INBOUND -p tcp -j PROXY_IN_REDIRECT && iptables -t nat -I PROXY_OUTPUT -d 1.1.1.1/32 -j RETURN && iptables -t nat -I PROXY_OUTPUT -d 2.2.2.2/24 -j RETURN && iptables -t nat -I PROXY_OUTPUT -p tcp --match multiport --dports 6379,7070,8080 -j RETURN`

func TestTheGuidesCommandsGiveTheSameTableToTheByte(t *testing.T) {
	nettest.RequireNetns(t)
	forBoth(t, func(t *testing.T, b *Backend) {
		var c testcase.Case
		for _, c = range testcase.Load(t, "../../..") {
			if c.Name == "osm/guide" {
				break
			}
		}
		decision, err := c.Decide(t)
		if err != nil {
			t.Fatal(err)
		}
		byGuide, byDetour := nettest.StartNamespace(t, "guide"), nettest.StartNamespace(t, "detour")
		shell(t, b, byGuide, guide)
		mustApply(t, b, byDetour, rules.Build(decision.Policy))
		if want, got := dump(t, b, byGuide, rules.IPv4), dump(t, b, byDetour, rules.IPv4); got != want {
			t.Errorf("detour programs\n%sthe init container\n%s", got, want)
		}
	})
}
