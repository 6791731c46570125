package nftjson_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/trace"
	"github.com/detour-cni/detour/pkg/trace/nftjson"
	"github.com/detour-cni/detour/pkg/trace/routes"
)

const sets = `
	set seen { type ipv4_addr; flags dynamic; size 100; }
	set addresses { type ipv4_addr; flags interval; elements = { 10.0.0.8-10.0.0.12, 11.0.0.0/8 } }
	set services { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/24 . 50-60 } }
	set ports { typeof udp dport; elements = { 53 } }
	set names { type ifname; flags interval; elements = { "d*" } }
	set marks { type mark; elements = { 0x24, 0x25 } }
	set protocols { type inet_proto; elements = { udp, 132 } }
`

// base keeps the kernel's own packets away from chain c.
const base = `
	chain o { type filter hook output priority 0
		meta skuid 1000 goto c
	}
`

// street is a namespace with a link on which a neighbor takes each packet and answers none.
func street(t *testing.T) *nettest.Namespace {
	t.Helper()
	nettest.RequireProgram(t, "nft")
	ns := nettest.StartNamespace(t, "nft")
	run(t, ns, `link add d0 type veth peer name d1
link set d0 up addrgenmode none
link set d1 up addrgenmode none
addr add 10.0.0.1/24 dev d0
addr add fd00::1/64 dev d0 nodad
neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev d0
neigh add fd00::9 lladdr 02:00:00:00:00:09 dev d0
`, "ip", "-batch", "-")
	return ns
}

// hits returns the handles of the rules whose counters counted.
func hits(t *testing.T, listing string) []uint64 {
	t.Helper()
	var all struct {
		Nftables []struct {
			Rule *struct {
				Handle uint64
				Expr   []struct {
					Counter *struct{ Packets int }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(listing), &all); err != nil {
		t.Fatal(err)
	}
	var counted []uint64
	for _, one := range all.Nftables {
		if one.Rule == nil {
			continue
		}
		for _, s := range one.Rule.Expr {
			if s.Counter != nil && s.Counter.Packets > 0 {
				counted = append(counted, one.Rule.Handle)
			}
		}
	}
	return counted
}

// TestMatchesAreWhatTheKernelDoes sends packets through the matches of testdata, each with a counter.
func TestMatchesAreWhatTheKernelDoes(t *testing.T) {
	t.Parallel()
	ns := street(t)
	matches, err := os.ReadFile("testdata/matches.nft")
	if err != nil {
		t.Fatal(err)
	}
	rules := regexp.MustCompile(`(?m)$`).ReplaceAllString(strings.TrimSpace(string(matches)), " counter")
	for _, family := range []string{"10.0.0.9", "fd00::9"} {
		for protocol, port := range map[nettest.Protocol]uint16{nettest.TCP: 80, nettest.UDP: 53} {
			run(t, ns, "flush ruleset\ntable inet t {"+sets+"chain c {\n"+rules+"\n}\n"+base+"}\n", "nft", "-f", "-")
			dst := netip.AddrPortFrom(netip.MustParseAddr(family), port)
			before := run(t, ns, "", "nft", "-j", "list", "ruleset")
			p := nettest.Process{Namespace: ns, UID: 1000, GID: 1000}
			if _, err := p.Ask(nettest.Call{Protocol: protocol, Destination: dst, Timeout: 200 * time.Millisecond}); err == nil {
				t.Fatal("there is an answer")
			}
			want := hits(t, run(t, ns, "", "nft", "-j", "list", "ruleset"))
			compareHits(t, before, walk(t, ns, before, protocol, dst), want, fmt.Sprint(protocol, " ", dst))
		}
	}
}

// walk is the tracer's word on the packet.
func walk(t *testing.T, ns *nettest.Namespace, listing string, protocol nettest.Protocol, dst netip.AddrPort) []uint64 {
	t.Helper()
	tables, err := nftjson.Read([]byte(listing))
	if err != nil {
		t.Fatal(err)
	}
	routing, err := routes.Read([]byte(run(t, ns, "", "ip", "-j", "route", "show", "table", "all")), []byte(run(t, ns, "", "ip", "-j", "addr")), nil)
	if err != nil {
		t.Fatal(err)
	}
	number := map[nettest.Protocol]uint8{nettest.TCP: 6, nettest.UDP: 17}[protocol]
	src := netip.AddrPortFrom(netip.Addr{}, 40000)
	result, err := trace.Walk(&trace.Namespace{Tables: tables, Routing: routing}, trace.Packet{
		Direction: trace.Out, Protocol: number, Src: src, Dst: dst, UID: 1000, GID: 1000,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Ways) != 1 {
		t.Fatalf("%d ways, want one: %+v", len(result.Ways), result.Ways)
	}
	var met []uint64
	for _, step := range result.Ways[0].Steps {
		if step.Unknown != "" {
			t.Errorf("unknown: %s: %s", step.Rule.Text, step.Unknown)
		}
		if step.Rule != nil && step.Missed == "" {
			met = append(met, step.Rule.Handle)
		}
	}
	return met
}

func compareHits(t *testing.T, listing string, got, want []uint64, packet string) {
	t.Helper()
	tables, err := nftjson.Read([]byte(listing))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rulesOf(t, tables[0].Chain("c")) {
		if met, hit := slices.Contains(got, rule.Handle), slices.Contains(want, rule.Handle); met != hit {
			t.Errorf("%s: %s: the walk says %v, the kernel %v", packet, rule.Text, met, hit)
		}
	}
}
