package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/mesh"
)

// What a connection's answer says about its way, and whether that is the wanted one.
func TestResult(t *testing.T) {
	t.Parallel()
	clients := addresses("10.88.0.1", "fd88::1")
	out, in := way{outbound, atOutside}, way{inbound, atApp}
	as, dns := way{inboundAs, atApp}, way{dnsAnswers, atProxy}
	for _, c := range []struct {
		name   string
		want   way
		dst    string
		answer string
		seen   string // "" for the answer itself
		ok     bool
	}{
		{"outbound", out, "203.0.113.10:80", "outside 203.0.113.10:80 asked by 10.88.0.1 via 15001 (original 203.0.113.10:80)", "15001 -> outside", true},
		{"outbound of IPv6", out, "[2001:db8::1]:80", "outside [2001:db8::1]:80 asked by fd88::1 via 15001 (original [2001:db8::1]:80)", "15001 -> outside", true},
		{"inbound", in, "10.88.0.2:8080", "app 127.0.0.1:8080 asked by 127.0.0.1 via 15006 (original 10.88.0.2:8080)", "15006 -> app", true},
		{"inbound of IPv6", in, "[fd88::2]:8080", "app [::1]:8080 asked by ::1 via 15006 (original [fd88::2]:8080)", "15006 -> app", true},
		{"as the client", as, "10.88.0.2:8080", "app 10.88.0.2:8080 asked by 10.88.0.1 via 15006 (original 10.88.0.2:8080)", "15006 -> app", true},
		{"not as the client", as, "10.88.0.2:8080", "app 127.0.0.1:8080 asked by 127.0.0.1 via 15006 (original 10.88.0.2:8080)", "15006 -> app", false},
		{"DNS", dns, "10.96.0.10:53", "proxy 127.0.0.1:15053 asked by 10.88.0.1", "15053 -> proxy", true},
		{"DNS of IPv6", dns, "[fd00:96::a]:53", "proxy [::1]:15053 asked by fd88::1", "15053 -> proxy", true},
		{"past the proxy's DNS", dns, "10.96.0.10:53", "outside 10.96.0.10:53 asked by 10.88.0.1", "direct -> outside", false},
		{"past the proxy", out, "203.0.113.10:80", "outside 203.0.113.10:80 asked by 10.88.0.1", "direct -> outside", false},
		{"the other listener", in, "10.88.0.2:8080", "app 10.88.0.2:8080 asked by 10.88.0.1 via 15001 (original 10.88.0.2:8080)", "15001 -> app", false},
		{"another original destination", out, "203.0.113.10:80", "outside 203.0.113.10:80 asked by 10.88.0.1 via 15001 (original 203.0.113.10:81)", "", false},
		{"another server", out, "203.0.113.10:80", "outside 203.0.113.11:80 asked by 10.88.0.1 via 15001 (original 203.0.113.10:80)", "", false},
		{"another client", out, "203.0.113.10:80", "outside 203.0.113.10:80 asked by 10.88.0.9 via 15001 (original 203.0.113.10:80)", "", false},
		{"an error", out, "203.0.113.10:80", "refused", "", false},
		{"nothing", out, "203.0.113.10:80", "", "", false},
	} {
		dst := netip.MustParseAddrPort(c.dst)
		r := result{row: row{Want: c.want}, Proxy: istioProxy, Client: clients.like(dst.Addr()), Dst: dst, Answer: c.answer}
		if c.seen == "" {
			c.seen = c.answer
		}
		if r.OK() != c.ok || r.Seen() != c.seen {
			t.Errorf("%s: got %t, %q; want %t, %q", c.name, r.OK(), r.Seen(), c.ok, c.seen)
		}
		if r.Proxy = osmProxy; r.OK() && c.want.Via != outbound {
			t.Errorf("%s: right for a proxy with other ports too", c.name)
		}
	}
}

func TestFindScenario(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		if found, err := findScenario(s.Mesh); err != nil || found.Mesh != s.Mesh {
			t.Errorf("%s: got %q, %v", s.Mesh, found.Mesh, err)
		}
		if !slices.Contains(mesh.Names(), s.Mesh) {
			t.Errorf("detour knows no mesh %s", s.Mesh)
		}
	}
	folders, err := os.ReadDir("../../testdata/demo")
	if err != nil || len(folders) != len(scenarios) {
		t.Errorf("%d folders of manifests, %d scenarios, %v", len(folders), len(scenarios), err)
	}
	if _, err := findScenario("linkerd"); err == nil || !strings.Contains(err.Error(), `"linkerd" is none of osm, osm-v1, osm-edge, fsm, istio`) {
		t.Errorf("got %v", err)
	}
}

func TestLane(t *testing.T) {
	t.Parallel()
	l := lane{Stops: []string{"app", "OUTPUT", "CHAIN", "proxy", "end"}, From: 1, Bypasses: []bypass{{"one", 3}, {"another", 4}}}
	want := strings.Join([]string{
		"app --> OUTPUT --> CHAIN --> proxy --> end",
		"           |                   ^        ^",
		"           +-- one ------------+        |",
		"           +-- another -----------------+",
	}, "\n")
	if got := strings.Join(l.draw(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	l.Bypasses = nil
	if got := l.draw(); !slices.Equal(got, []string{"app --> OUTPUT --> CHAIN --> proxy --> end"}) {
		t.Errorf("got %q", got)
	}
}
