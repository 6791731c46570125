package nettest

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func parse(t *testing.T, text string) []Packet {
	t.Helper()
	packets, err := ParsePackets(text)
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

func TestParsePackets(t *testing.T) {
	t.Parallel()
	got := parse(t, `
		# what goes out
		out 1.1.1.1:80 -> proxy 15001     # the rule of thumb
		out	[2001:DB8:0::1]:80  uid=01500->outside
		out 127.0.0.1:9000 uid=1000 -> app

		in 8080 -> proxy 15003
		in4 15010 -> app
		in6 65535 -> error: refused
	`)
	want := []Packet{
		{Out, IPv4, netip.MustParseAddrPort("1.1.1.1:80"), 1000, Outcome{Kind: ToProxy, ProxyPort: 15001}},
		{Out, IPv6, netip.MustParseAddrPort("[2001:db8::1]:80"), 1500, Outcome{Kind: ToOutside}},
		{Out, IPv4, netip.MustParseAddrPort("127.0.0.1:9000"), 1000, Outcome{Kind: ToApp}},
		{In, Both, netip.AddrPortFrom(netip.Addr{}, 8080), 0, Outcome{Kind: ToProxy, ProxyPort: 15003}},
		{In, IPv4, netip.AddrPortFrom(netip.Addr{}, 15010), 0, Outcome{Kind: ToApp}},
		{In, IPv6, netip.AddrPortFrom(netip.Addr{}, 65535), 0, Outcome{Kind: Failed, Err: ErrRefused}},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	canonical := []string{
		"out 1.1.1.1:80 -> proxy 15001",
		"out [2001:db8::1]:80 uid=1500 -> outside",
		"out 127.0.0.1:9000 -> app",
		"in 8080 -> proxy 15003",
		"in4 15010 -> app",
		"in6 65535 -> error: refused",
	}
	for i, p := range got {
		if p.String() != canonical[i] {
			t.Errorf("got %q, want %q", p, canonical[i])
		}
	}
}

func TestParsePacketsErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, want string }{
		{"\n# c\nout 1.1.1.1:80 -> prox", `packets: line 3: outcome "prox": proxy PORT, outside, app or error: REASON is needed`},
		{"out 1.1.1.1:80", "packets: line 1: no -> between packet and outcome"},
		{"out 1.1.1.1:80 -> ", `outcome "": `},
		{"out 1.1.1.1:80 -> app -> app", `outcome "app -> app": `},
		{"out 1.1.1.1:80 -> proxy", `outcome "proxy": `},
		{"out 1.1.1.1:80 -> proxy x", `outcome "proxy x": port "x": a number from 1 to 65535 is needed`},
		{"out 1.1.1.1:80 -> error: odd", `outcome "error: odd": `},
		{"out -> app", `packet "out": a direction and a destination are needed`},
		{"-> app", `packet "": a direction and a destination are needed`},
		{"to 1.1.1.1:80 -> app", `direction "to": out, in, in4 or in6 is needed`},
		{"out 1.1.1.1 -> app", `destination "1.1.1.1": IPV4:PORT or [IPV6]:PORT is needed`},
		{"out 2001:db8::1:80 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out example.com:80 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out 1.1.1.1:0 -> app", "port 0 can't be dialed"},
		{"out 1.1.1.1:70000 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out [::ffff:1.1.1.1]:80 -> app", "neither an IPv4 address in IPv6 form nor a zone"},
		{"out [fe80::1%eth0]:80 -> app", "neither an IPv4 address in IPv6 form nor a zone"},
		{"out 0.0.0.0:80 -> app", "the address is no host's"},
		{"out [ff02::1]:80 -> app", "the address is no host's"},
		{"out 1.1.1.1:80 gid=1 -> app", `option "gid=1": uid=UID is the only one`},
		{"out 1.1.1.1:80 uid=-1 -> app", `option "uid=-1": a UID from 0 to 4294967294 is needed`},
		{"out 1.1.1.1:80 uid=4294967295 -> app", "a UID from 0 to 4294967294 is needed"},
		{"out 1.1.1.1:80 uid=1 uid=2 -> app", `option "uid=2": at most one option`},
		{"in 0 -> app", `port "0": `},
		{"in 1.1.1.1:80 -> app", `port "1.1.1.1:80": `},
		{"in 80 uid=1 -> app", `option "uid=1": an inbound packet has none`},
		{"in 80 -> outside", "outcome outside: an inbound packet stays in the pod"},
	} {
		packets, err := ParsePackets(c.text)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, %v; want error %q", c.text, packets, err, c.want)
		}
	}
}

// FuzzParsePackets: what is read is written so that it is read back as the same.
func FuzzParsePackets(f *testing.F) {
	for _, seed := range []string{
		"", "# only a comment", "out 1.1.1.1:80 -> proxy 15001", "out [2001:db8::1]:80 uid=1500 -> outside",
		"out 127.0.0.1:9000 -> app # why", "in 8080 -> proxy 15003\nin4 15010 -> app\r\nin6 1->error: timeout",
		"out [::ffff:1.1.1.1]:80 -> app", "out [fe80::1%eth0]:80 -> app", "out 1.1.1.1:080 uid=0 -> error:  reset", "in 80 -> -> app",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		packets, err := ParsePackets(text)
		if err != nil {
			return
		}
		var canonical strings.Builder
		for _, p := range packets {
			canonical.WriteString(p.String() + "\n")
		}
		again, err := ParsePackets(canonical.String())
		if err != nil || !slices.Equal(again, packets) {
			t.Errorf("%q became %q, which is read as %v, %v", text, canonical.String(), again, err)
		}
	})
}
