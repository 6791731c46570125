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

		out udp 10.96.0.10:53 gid=1337 uid=0 -> proxy 15053
		out [2001:db8::1]:80 src=::0006 gid=1000 -> app
		out 10.77.0.2:80 src=127.0.0.6 gid=0 uid=1337 -> app
		in via=net1 8080 -> app
		in6 udp via=net1 53 -> app
		guest 1.1.1.1:80 -> proxy 15001
		guest udp [2001:db8::1]:53 -> outside
	`)
	addrPort, port := netip.MustParseAddrPort, func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }
	want := []Packet{
		{Direction: Out, Families: IPv4, Dst: addrPort("1.1.1.1:80"), UID: 1000, GID: 1000, Want: Outcome{Kind: ToProxy, ProxyPort: 15001}},
		{Direction: Out, Families: IPv6, Dst: addrPort("[2001:db8::1]:80"), UID: 1500, GID: 1000, Want: Outcome{Kind: ToOutside}},
		{Direction: Out, Families: IPv4, Dst: addrPort("127.0.0.1:9000"), UID: 1000, GID: 1000, Want: Outcome{Kind: ToApp}},
		{Direction: In, Families: Both, Dst: port(8080), Want: Outcome{Kind: ToProxy, ProxyPort: 15003}},
		{Direction: In, Families: IPv4, Dst: port(15010), Want: Outcome{Kind: ToApp}},
		{Direction: In, Families: IPv6, Dst: port(65535), Want: Outcome{Kind: Failed, Err: ErrRefused}},
		{Direction: Out, Protocol: UDP, Families: IPv4, Dst: addrPort("10.96.0.10:53"), GID: 1337, Want: Outcome{Kind: ToProxy, ProxyPort: 15053}},
		{Direction: Out, Families: IPv6, Dst: addrPort("[2001:db8::1]:80"), UID: 1000, GID: 1000, Src: netip.MustParseAddr("::6"), Want: Outcome{Kind: ToApp}},
		{Direction: Out, Families: IPv4, Dst: addrPort("10.77.0.2:80"), UID: 1337, Src: netip.MustParseAddr("127.0.0.6"), Want: Outcome{Kind: ToApp}},
		{Direction: In, Families: Both, Dst: port(8080), Via: "net1", Want: Outcome{Kind: ToApp}},
		{Direction: In, Protocol: UDP, Families: IPv6, Dst: port(53), Via: "net1", Want: Outcome{Kind: ToApp}},
		{Direction: Guest, Families: IPv4, Dst: addrPort("1.1.1.1:80"), Want: Outcome{Kind: ToProxy, ProxyPort: 15001}},
		{Direction: Guest, Protocol: UDP, Families: IPv6, Dst: addrPort("[2001:db8::1]:53"), Want: Outcome{Kind: ToOutside}},
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
		"out udp 10.96.0.10:53 uid=0 gid=1337 -> proxy 15053",
		"out [2001:db8::1]:80 src=::6 -> app",
		"out 10.77.0.2:80 uid=1337 gid=0 src=127.0.0.6 -> app",
		"in via=net1 8080 -> app",
		"in6 udp via=net1 53 -> app",
		"guest 1.1.1.1:80 -> proxy 15001",
		"guest udp [2001:db8::1]:53 -> outside",
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
		{"out udp -> app", `packet "out udp": a direction and a destination are needed`},
		{"to 1.1.1.1:80 -> app", `direction "to": out, in, in4, in6 or guest is needed`},
		{"udp out 1.1.1.1:80 -> app", `direction "udp": `},
		{"out tcp 1.1.1.1:80 -> app", `destination "tcp": `},
		{"out 1.1.1.1 -> app", `destination "1.1.1.1": IPV4:PORT or [IPV6]:PORT is needed`},
		{"out 2001:db8::1:80 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out example.com:80 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out 1.1.1.1:0 -> app", "port 0 can't be dialed"},
		{"out 1.1.1.1:70000 -> app", "IPV4:PORT or [IPV6]:PORT is needed"},
		{"out [::ffff:1.1.1.1]:80 -> app", "neither an IPv4 address in IPv6 form nor a zone"},
		{"out [fe80::1%eth0]:80 -> app", "neither an IPv4 address in IPv6 form nor a zone"},
		{"out 0.0.0.0:80 -> app", "the address is no host's"},
		{"out [ff02::1]:80 -> app", "the address is no host's"},
		{"out 1.1.1.1:80 pid=1 -> app", `option "pid=1": there are only uid, gid and src`},
		{"out 1.1.1.1:80 via=net1 -> app", `option "via=net1": there are only uid, gid and src`},
		{"out via=net1 1.1.1.1:80 -> app", `"via=net1": only what comes in has it, all else goes by its destination`},
		{"out udp via=net1 -> app", `"via=net1": only what comes in has it`},
		{"in via=net1 -> app", `packet "in via=net1": a direction and a destination are needed`},
		{"in via=net1 udp 53 -> app", `port "udp": `},
		{"in 80 via=net1 -> app", `option "via=net1": only out has options after the destination`},
		{"out 1.1.1.1:80 uid=-1 -> app", `option "uid=-1": a UID from 0 to 4294967294 is needed`},
		{"out 1.1.1.1:80 uid=4294967295 -> app", "a UID from 0 to 4294967294 is needed"},
		{"out 1.1.1.1:80 gid=x -> app", `option "gid=x": a GID from 0 to 4294967294 is needed`},
		{"out 1.1.1.1:80 uid -> app", `option "uid": a UID from 0`},
		{"out 1.1.1.1:80 uid=1 gid=1 uid=2 -> app", `option "uid=2": it is there twice`},
		{"out 1.1.1.1:80 src=eth0 -> app", `option "src=eth0": an address is needed`},
		{"out 1.1.1.1:80 src=::6 -> app", `option "src=::6": the destination is of the other family`},
		{"out [::1]:80 src=127.0.0.6 -> app", `option "src=127.0.0.6": the destination is of the other family`},
		{"out 1.1.1.1:80 src=0.0.0.0 -> app", "the address is no host's"},
		{"out [::1]:80 src=fe80::1%lo -> app", "the address is no host's"},
		{"out [::1]:80 src=::ffff:1.1.1.1 -> app", "the address is no host's"},
		{"out 10.79.0.2:80 -> outside", `destination "10.79.0.2:80": nothing is served in the guest`},
		{"in via=eth1 80 -> app", `"via=eth1": there is only net1`},
		{"in udp 1.1.1.1:53 -> app", `port "1.1.1.1:53": `},
		{"guest 80 -> app", `destination "80": `},
		{"guest [::1]:80 -> app", `destination "[::1]:80": the guest's loopback is not the pod's`},
		{"guest 1.1.1.1:80 uid=1 -> app", `option "uid=1": only out has options`},
		{"in 0 -> app", `port "0": `},
		{"in 1.1.1.1:80 -> app", `port "1.1.1.1:80": `},
		{"in 80 uid=1 -> app", `option "uid=1": only out has options`},
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
		"out udp 10.96.0.10:53 gid=1337 uid=1337 -> proxy 15053", "out [::1]:80 src=::6 -> app", "out udp udp -> app", "in6 udp via=net1 53 -> app",
		"guest 1.1.1.1:80 -> proxy 15001", "guest udp [2001:db8::1]:53 -> outside", "out 127.0.0.1:80 src=::ffff:127.0.0.6 uid=1 uid=1 -> app",
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
