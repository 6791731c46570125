package snapshot

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
)

func readIn(t *testing.T, ns *nettest.Namespace) (all *trace.Namespace) {
	t.Helper()
	err := ns.Do(func() (err error) {
		all, err = Read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEachTableIsThereOnceAndInOrder(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "nft")
	nettest.RequireProgram(t, "iptables-nft")
	nettest.RequireProgram(t, "iptables-legacy")
	ns := nettest.StartNamespace(t, "order")
	run(t, ns, `nft add table ip z; iptables-nft -A OUTPUT -j ACCEPT; nft add table inet y; iptables-nft -t nat -A OUTPUT -j ACCEPT
		ip6tables-nft -A OUTPUT -j ACCEPT; nft add table netdev x; nft add table bridge w; iptables-legacy -t nat -A OUTPUT -j ACCEPT`)
	var got []string
	for _, table := range readIn(t, ns).Tables {
		got = append(got, fmt.Sprintf("%s %s %s", table.Origin, table.Family, table.Name))
	}
	want := []string{
		"iptables-legacy ip nat", "nft ip z", "iptables-nft ip filter", "nft inet y", "iptables-nft ip nat", "iptables-nft ip6 filter", "nft netdev x",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

func TestForwardingIsThatOfTheNamespace(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	ns := nettest.StartNamespace(t, "forwarding")
	for _, want := range []map[trace.Family]bool{{trace.IP: true, trace.IP6: false}, {trace.IP: false, trace.IP6: true}} {
		for family, path := range map[trace.Family]string{trace.IP: "ipv4/ip_forward", trace.IP6: "ipv6/conf/all/forwarding"} {
			sysctl(t, ns, path, map[bool]string{true: "1", false: "0"}[want[family]])
		}
		if got := readIn(t, ns).Routing.Forwarding; !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestRulesOfIPSetsHaveTheirElements(t *testing.T) {
	t.Parallel()
	nettest.RequireNetns(t)
	nettest.RequireProgram(t, "iptables-nft")
	ns := nettest.StartNamespace(t, "ipset")
	err := ns.Do(func() error {
		if err := netlink.IpsetCreate("s", "hash:ip", netlink.IpsetCreateOptions{Family: unix.NFPROTO_IPV4}); err != nil {
			return err
		}
		return netlink.IpsetAdd("s", &netlink.IPSetEntry{IP: net.IPv4(127, 0, 0, 1).To4()})
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, ns, "ip link set lo up; iptables-nft -A OUTPUT -m set --match-set s dst -j DROP")
	for to, want := range map[string]trace.Outcome{"127.0.0.1:80": trace.Dropped, "127.0.0.2:80": trace.Accepted} {
		r, err := trace.Walk(readIn(t, ns), trace.Packet{Direction: trace.Out, Protocol: 6, Dst: netip.MustParseAddrPort(to)})
		if err != nil || r.Ways[0].Verdict != want {
			t.Errorf("%s: %+v, %v", to, r, err)
		}
	}
}
