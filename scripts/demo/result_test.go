package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/mesh"
)

// What a connection's answer says about its way, and whether that is the wanted one.
func TestResult(t *testing.T) {
	t.Parallel()
	out := row{To: server, Want: way{outboundPort, atOutside}}
	in := row{To: webPod, Want: way{inboundPort, atApp}}
	for _, c := range []struct {
		name   string
		row    row
		dst    string
		answer string
		seen   string // "" for the answer itself
		ok     bool
	}{
		{"outbound", out, "203.0.113.10:80", "outside 203.0.113.10:80 via proxy 15001 (original 203.0.113.10:80)", "15001 -> outside", true},
		{"outbound of IPv6", out, "[2001:db8::1]:80", "outside [2001:db8::1]:80 via proxy 15001 (original [2001:db8::1]:80)", "15001 -> outside", true},
		{"inbound", in, "10.88.0.2:8080", "app 127.0.0.1:8080 via proxy 15003 (original 10.88.0.2:8080)", "15003 -> app", true},
		{"inbound of IPv6", in, "[fd88::2]:8080", "app [::1]:8080 via proxy 15003 (original [fd88::2]:8080)", "15003 -> app", true},
		{"past the proxy", out, "203.0.113.10:80", "outside 203.0.113.10:80", "direct -> outside", false},
		{"the other listener", in, "10.88.0.2:8080", "app 10.88.0.2:8080 via proxy 15001 (original 10.88.0.2:8080)", "15001 -> app", false},
		{"another original destination", out, "203.0.113.10:80", "outside 203.0.113.10:80 via proxy 15001 (original 203.0.113.10:81)", "", false},
		{"another server", out, "203.0.113.10:80", "outside 203.0.113.11:80 via proxy 15001 (original 203.0.113.10:80)", "", false},
		{"an error", out, "203.0.113.10:80", "refused", "", false},
		{"nothing", out, "203.0.113.10:80", "", "", false},
	} {
		r := result{row: c.row, Dst: netip.MustParseAddrPort(c.dst), Answer: c.answer}
		if c.seen == "" {
			c.seen = c.answer
		}
		if r.OK() != c.ok || r.Seen() != c.seen {
			t.Errorf("%s: got %t, %q; want %t, %q", c.name, r.OK(), r.Seen(), c.ok, c.seen)
		}
	}
}

func TestFindScenario(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		if _, ok := mesh.Find(s.Mesh); !ok {
			t.Errorf("scenario %q: detour knows no such mesh", s.Mesh)
		}
	}
	if _, err := findScenario("linkerd"); err == nil || !strings.Contains(err.Error(), `"linkerd": the demo knows osm`) {
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
}
