package livetrace

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
)

// rare are rules whose order, jumps, translations and routes are easy to get wrong. A packet with from comes in from there.
var rare = []struct {
	name, rules, from, to string
	want                  trace.Outcome
}{
	{"tables of the same priority", `nft -f - <<-END
		table ip b { chain o { type filter hook output priority 0; meta mark set 1; }; }
		table ip a { chain o { type filter hook output priority 0; meta mark set 2; }; }
		table inet c { chain o { type filter hook output priority 0; meta mark set 3; }; }
		END`, "", "198.51.100.1:81", trace.Accepted},
	{"tables of both programs", `nft -f - <<-END
		table ip b { chain o { type filter hook output priority 0; meta mark set 1; }; }
		END
		iptables-nft -A OUTPUT -j MARK --set-mark 2
		nft add table ip a; nft add chain ip a o "{ type filter hook output priority 0; }"; nft add rule ip a o meta mark set 3`,
		"", "198.51.100.1:81", trace.Accepted},
	{"a chain older than NAT, and one newer", `nft -f - <<-END
		table ip a { chain o { type filter hook output priority -100; ip daddr 198.51.100.1 meta mark set 1; ip daddr 198.51.100.2 meta mark set 2; }; }
		END
		nft add table ip b; nft add chain ip b n "{ type nat hook output priority -100; }"; nft add rule ip b n tcp dport 81 dnat to 198.51.100.2
		nft add table ip c; nft add chain ip c o "{ type filter hook output priority -100; }"
		nft add rule ip c o ip daddr 198.51.100.1 meta mark set mark or 4; nft add rule ip c o ip daddr 198.51.100.2 meta mark set mark or 8`,
		"", "198.51.100.1:81", trace.Accepted},
	{"goto and jump", `nft -f - <<-END
		table ip a {
			chain four { meta mark set 4; }
			chain three { goto four; }
			chain two { meta mark set 1; return; meta mark set 2; }
			chain one { jump two; meta mark set 3; goto three; }
			chain o { type filter hook output priority 0; jump one; tcp dport 81 goto two; meta mark set 6; }
		}
		END`, "", "198.51.100.1:81", trace.Accepted},
	{"a route by the mark", `ip link add eth1 type veth peer name eth2; ip link set eth1 up; ip link set eth2 up
		ip route add default dev eth1 table 100; ip rule add fwmark 5 table 100
		iptables-nft -t mangle -A OUTPUT -j MARK --set-mark 5; iptables-nft -A OUTPUT -o eth0 -j ACCEPT
		iptables-nft -t mangle -A POSTROUTING -o eth1 -j ACCEPT`, "", "198.51.100.1:81", trace.Accepted},
	{"a mark of a chain that does not route", `ip link add eth1 type veth peer name eth2; ip link set eth1 up; ip link set eth2 up
		ip route add default dev eth1 table 100; ip rule add fwmark 5 table 100; iptables-nft -A OUTPUT -j MARK --set-mark 5
		iptables-nft -t mangle -A POSTROUTING -o eth0 -j ACCEPT`, "", "198.51.100.1:81", trace.Accepted},
	{"a route to the new destination", `ip link add eth1 type veth peer name eth2; ip addr add 10.7.0.1/24 dev eth1; ip link set eth1 up; ip link set eth2 up
		ip neigh add 10.7.0.7 lladdr 02:00:00:00:00:07 dev eth1
		iptables-nft -t nat -A OUTPUT -j DNAT --to 10.7.0.7; iptables-nft -A OUTPUT -o eth0 -j ACCEPT
		iptables-nft -t nat -A POSTROUTING -o eth1 -j MASQUERADE`, "", "198.51.100.1:81", trace.Accepted},
	{"a network in OUTPUT", `iptables-nft -t nat -A OUTPUT -d 198.51.100.0/24 -j NETMAP --to 203.0.112.0/23`, "", "198.51.100.129:81", trace.Accepted},
	{"a network in PREROUTING", `iptables-nft -t nat -A PREROUTING -d 198.51.100.0/24 -j NETMAP --to 203.0.113.64/26
		iptables-nft -A FORWARD -d 203.0.113.0/24 -j ACCEPT`, "192.0.2.2", "198.51.100.33:81", trace.Accepted},
	{"a network in POSTROUTING", `iptables-nft -t nat -A POSTROUTING -s 192.0.2.0/24 -j NETMAP --to 203.0.113.0/24`, "", "198.51.100.1:81", trace.Accepted},
	{"the last port of a range", `iptables-nft -t nat -A OUTPUT -p tcp -j DNAT --to 198.51.100.2:80-90`, "", "198.51.100.1:90", trace.Accepted},
	{"a redirect of a packet that comes in", `ip addr add 192.0.2.9/24 dev eth0; iptables-nft -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15001
		iptables-nft -A INPUT -d 192.0.2.1 -j ACCEPT`, "192.0.2.2", "198.51.100.1:81", trace.Redirected},
	{"masquerade by the route's source", `ip addr add 192.0.2.9/24 dev eth0; ip route replace default via 192.0.2.2 src 192.0.2.9
		iptables-nft -t nat -A POSTROUTING -j MASQUERADE`, "192.0.2.2", "198.51.100.1:81", trace.Accepted},
	{"masquerade by the gateway's network", `ip addr add 10.7.0.1/24 dev eth0; ip route replace default via 10.7.0.7
		iptables-nft -t nat -A POSTROUTING -j MASQUERADE`, "192.0.2.2", "198.51.100.1:81", trace.Accepted},
	{"masquerade of IPv6", `ip addr add fd00::1/64 dev eth0 nodad; ip addr add fd00::2/64 dev eth0 nodad; ip -6 route add default dev eth0 src fd00::2
		ip6tables-nft -t nat -A POSTROUTING -j MASQUERADE`, "", "[fd01::9]:81", trace.Accepted},
	{"masquerade on lo", `iptables-nft -t nat -A OUTPUT -p tcp -j DNAT --to 127.0.0.1:82; iptables-nft -t nat -A POSTROUTING -o lo -j MASQUERADE
		iptables-nft -A INPUT -i lo -j ACCEPT`, "", "198.51.100.1:81", trace.Accepted},
	{"lo's PREROUTING", `sysctl -qw net.ipv4.conf.all.route_localnet=1; iptables-nft -t mangle -A PREROUTING -i lo -j MARK --set-mark 9
		iptables-nft -A INPUT -i lo -m mark --mark 9 -j ACCEPT; iptables-nft -t nat -A OUTPUT -m mark --mark 99`, "", "192.0.2.1:81", trace.Accepted},
	{"what leaves eth0", `ip neigh replace 192.0.2.2 lladdr 02:00:00:00:00:02 dev eth0 # the packet does not wait for the peer
		nft -f - <<-END
		table netdev a { chain e { type filter hook egress device eth0 priority 0; tcp dport 81 drop; }; }
		END`, "", "198.51.100.1:81", trace.Dropped},
}

func TestTheKernelAndAWalkTellTheSameWayOfWhatIsRare(t *testing.T) {
	nettest.RequireNetns(t)
	for _, test := range rare {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			here, peer := host(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0\n"+test.rules)
			p := trace.Packet{Direction: trace.Out, Protocol: unix.IPPROTO_TCP, Dst: netip.MustParseAddrPort(test.to)}
			if test.from != "" {
				p.Direction, p.Interface, p.Src = trace.In, "eth0", netip.AddrPortFrom(netip.MustParseAddr(test.from), 0)
			}
			live, walked, err := follow(t.Context(), here, p, nettest.Patience, func() {
				if test.from != "" {
					connect := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", p.Dst.Addr(), p.Dst.Port())
					go func() { _ = peer.Do(func() error { return exec.Command("bash", "-c", connect).Start() }) }()
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, live, walked, test.want)
			l, w := live.Ways[0].Packet, walked.Ways[0].Packet
			if l.From != w.From || l.Interface != w.Interface || l.Local != w.Local {
				t.Errorf("the kernel says %+v, the walk %+v", l, w)
			}
		})
	}
}
