package nftrace

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
)

// first are the events of the first packet, up to the moment when another one begins or none comes for a second.
func first(t *testing.T, trace *Trace) (events []Event) {
	t.Helper()
	_ = trace.SetDeadline(time.Now().Add(nettest.Patience))
	for {
		e, err := trace.Next()
		if errors.Is(err, os.ErrDeadlineExceeded) && len(events) > 0 {
			return events
		}
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
		_ = trace.SetDeadline(time.Now().Add(time.Second))
	}
}

// words are the events in words: a rule by its comment, or by what follows its counter, as nft lists it now.
func words(t *testing.T, ns *nettest.Namespace, events []Event) (all []string) {
	t.Helper()
	names := map[string]string{}
	table, chain := "", ""
	for line := range strings.Lines(run(t, ns, "nft -a list ruleset")) {
		if m := regexp.MustCompile(`^table (\S+ \S+) `).FindStringSubmatch(line); m != nil {
			table = m[1]
		} else if m := regexp.MustCompile(`^\tchain (\S+) `).FindStringSubmatch(line); m != nil {
			chain = m[1]
		} else if m := regexp.MustCompile(`(?:comment "|bytes \d+ ?)([^"]*?)"? ?# handle (\d+)`).FindStringSubmatch(line); m != nil {
			names[table+" "+chain+" "+m[2]] = m[1]
		}
	}
	for _, e := range events {
		name := ""
		switch e.Kind {
		case RuleHit:
			rule, known := names[fmt.Sprint(e.Family, " ", e.Table, " ", e.Chain, " ", e.Handle)]
			if !known {
				t.Errorf("the kernel has no rule %d", e.Handle)
			}
			name = rule + ": "
		case Passed:
		case Policy:
			name = "policy: "
		case ChainEnd:
			name = "end: "
		}
		all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s: %s%s %s", e.Family, e.Table, e.Chain, name, e.Verdict.Code, e.Verdict.Chain)))
	}
	return all
}

const native = `nft -f - <<'END'
table inet a {
	map ways { type inet_service : verdict; elements = { 80 : goto there } }
	chain first {
		type filter hook output priority -200
		udp dport 81 drop comment "not this"
		meta mark set 7 comment "mark"
		jump sub comment "jump"
		udp dport vmap @ways comment "map"
		meta l4proto udp drop comment "never"
	}
	chain sub {
		udp dport 80 return comment "back"
		meta l4proto udp drop comment "never"
	}
	chain there {
		counter comment "count"
	}
	chain last {
		type filter hook postrouting priority 0; policy drop
		meta mark 7 accept comment "marked"
		meta l4proto icmpv6 accept comment "neighbours"
	}
}
END`

const iptables = `iptables-nft-restore <<'END'
*mangle
-A OUTPUT -p udp --dport 80 -j MARK --set-xmark 0x10/0x10
COMMIT
*filter
:SUB -
-A OUTPUT -d 2.2.2.2 -j DROP
-A OUTPUT -p udp -m multiport --dports 79,80 -j SUB
-A OUTPUT -m mark --mark 0x10/0x10 -j ACCEPT
-A SUB -j RETURN
COMMIT
END`

const loop = `iptables-nft-restore <<'END'
*nat
-A OUTPUT -p udp --dport 80 -j REDIRECT --to-ports 15001
COMMIT
*filter
-A INPUT -p udp --dport 15001
COMMIT
END`

func TestTheEventsOfAPacketAreItsRulesInOrder(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script, packet string
		flow           Flow
		want           []string
	}{
		"nft": {native, "out udp 1.1.1.1:80 -> outside", Flow{Protocol: unix.IPPROTO_UDP, To: netip.MustParseAddrPort("1.1.1.1:80")}, []string{
			"inet a first: mark: continue", "inet a first: jump: jump sub", "inet a sub: back: return", "inet a first: map: goto there",
			"inet a there: count: continue", "inet a there: end: continue", "inet a first: policy: accept", "inet a last: marked: accept",
		}},
		"nft, IPv6": {native, "out udp [2001:db8::1]:80 -> outside", Flow{unix.IPPROTO_UDP, netip.AddrPortFrom(nettest.PodIPv6, 0), netip.MustParseAddrPort("[2001:db8::1]:80")}, []string{
			"inet a first: mark: continue", "inet a first: jump: jump sub", "inet a sub: back: return", "inet a first: map: goto there",
			"inet a there: count: continue", "inet a there: end: continue", "inet a first: policy: accept", "inet a last: marked: accept",
		}},
		"iptables-nft": {iptables, "out udp 1.1.1.1:80 -> outside", Flow{To: netip.MustParseAddrPort("1.1.1.1:0")}, []string{
			"ip mangle OUTPUT: meta mark set mark or 0x10: continue", "ip mangle OUTPUT: end: continue", "ip mangle OUTPUT: policy: accept",
			"ip filter OUTPUT: jump SUB: jump SUB", "ip filter SUB: return: return",
			"ip filter OUTPUT: accept: accept",
		}},
		"to itself, translated": {loop, "out udp 1.1.1.1:80 -> proxy 15001", Flow{Protocol: unix.IPPROTO_UDP, To: netip.MustParseAddrPort("1.1.1.1:80")}, []string{
			"ip nat OUTPUT: redirect to :15001: accept", "ip filter INPUT: : continue", "ip filter INPUT: end: continue", "ip filter INPUT: policy: accept",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, packets := world(t, c.packet)
			run(t, w.Pod, c.script)
			trace := begin(t, w.Pod, c.flow, tableOwner)
			send(t, w, packets[0])
			events := first(t, trace)
			if got := words(t, w.Pod, events); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// Nobody but the kernel sends to the group, but no message may end the process.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{unix.NFPROTO_INET, 0, 0, 0})
	f.Add(netlink.AppendAttributes([]byte{unix.NFPROTO_IPV4, 0, 0, 0}, netlink.Number(unix.NFTA_TRACE_TYPE, 3), netlink.Text(unix.NFTA_TRACE_TABLE, "t"),
		netlink.Attribute{Kind: unix.NFTA_TRACE_NETWORK_HEADER, Data: []byte{0x45, 19: 0}}, netlink.Attribute{Kind: unix.NFTA_TRACE_TRANSPORT_HEADER, Data: []byte{0, 80}}))
	f.Fuzz(func(_ *testing.T, body []byte) { decode(body) })
}
