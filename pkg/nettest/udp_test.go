package nettest

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

const dnsRedirect = `*nat
-A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN
-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053
-A PREROUTING -p udp --dport 5353 -j REDIRECT --to-ports 15053
COMMIT
`

func TestRedirectUDP(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		restoreBoth(t, w.Pod, variant, dnsRedirect)
		CheckPackets(t, w, parse(t, `
			out udp 10.96.0.10:53 -> proxy 15053
			out udp 10.96.0.10:53 uid=1337 -> outside
			out udp 10.96.0.10:54 -> outside
			out 10.96.0.10:53 -> outside             # it's UDP that is redirected
			out udp 127.0.0.1:53 -> proxy 15053
			out udp 127.0.0.1:9000 -> app
			out udp 10.77.0.2:9000 -> app
			out udp 10.77.0.2:9000 src=127.0.0.6 -> app
			out udp [fd00:96::a]:53 -> proxy 15053
			out udp [fd00:96::a]:53 uid=1337 -> outside
			out udp [fd00:96::a]:54 -> outside
			out udp [::1]:53 -> proxy 15053
			out udp [fd77::2]:9000 -> app
			in udp 53 -> app
			in udp 5353 -> proxy 15053
			guest udp 10.96.0.10:5353 -> proxy 15053
			guest udp [fd00:96::a]:5353 -> proxy 15053
		`))
	})
}

// An answer that comes back from another address than the one asked is none.
func TestAnswerFromElsewhere(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	// What the proxy answers is not tracked, so nothing puts the asked address back.
	restoreBoth(t, w.Pod, "nft", dnsRedirect+"*raw\n-A OUTPUT -p udp --sport 15053 -j CT --notrack\nCOMMIT\n")
	CheckPackets(t, w, parse(t, `
		out udp 10.96.0.10:53 -> error: timeout
		out udp [fd00:96::a]:53 -> error: timeout
		out udp 10.96.0.10:53 uid=1337 -> outside
	`), 15053)

	// A plain server for all addresses answers from the nearest.
	var plain net.PacketConn
	err := w.Outside.Do(func() (err error) { plain, err = net.ListenPacket("udp4", ":99"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	go func() {
		datagram := make([]byte, 100)
		for _, peer, err := plain.ReadFrom(datagram); err == nil; _, peer, err = plain.ReadFrom(datagram) {
			_, _ = plain.WriteTo([]byte("plain\n"), peer)
		}
	}()
	nearest := Call{Protocol: UDP, Destination: netip.MustParseAddrPort("10.77.0.1:99")}
	if got, err := own(w.Pod).Ask(nearest); err != nil {
		t.Errorf("the nearest address: got %q, %v", got, err)
	}
	another := Call{Protocol: UDP, Destination: netip.MustParseAddrPort("9.9.9.9:99"), Timeout: Silence}
	if got, err := own(w.Pod).Ask(another); !errors.Is(err, ErrTimeout) {
		t.Errorf("another address: got %q, %v", got, err)
	}
}

func TestDroppedAndRejected(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restoreBoth(t, w.Pod, "nft", `*filter
-A INPUT -p tcp --sport 1000 -j DROP
-A INPUT -p udp --sport 1000 -j DROP
-A OUTPUT -p tcp --dport 1001 -j DROP
-A OUTPUT -p udp --dport 1001 -j DROP
-A OUTPUT -p udp --dport 1002 -j REJECT
-A INPUT -p tcp --dport 8080 -j DROP
-A INPUT -p udp --dport 8080 -j DROP
COMMIT
`)
	restore(t, w.Outside, "iptables-nft", "*filter\n-A INPUT -p udp --dport 1003 -j REJECT --reject-with icmp-host-unreachable\nCOMMIT\n")
	restore(t, w.Outside, "ip6tables-nft", "*filter\n-A INPUT -p udp --dport 1003 -j REJECT --reject-with icmp6-no-route\nCOMMIT\n")
	packets := parse(t, `
		out 1.1.1.1:1000 -> error: timeout
		out udp 1.1.1.1:1000 -> error: timeout
		out 1.1.1.1:1001 -> error: timeout
		out udp 1.1.1.1:1001 -> error: timeout
		out udp 1.1.1.1:1002 -> error: refused
		out udp [2001:db8::1]:1002 -> error: refused
		out udp 1.1.1.1:1003 -> error: unreachable
		out udp [2001:db8::1]:1003 -> error: unreachable
		in 8080 -> error: timeout
		in udp 8080 -> error: timeout
	`)
	w.Timeout = time.Minute // which nobody waits for who wants one
	start := time.Now()
	CheckPackets(t, w, packets)
	if took := time.Since(start); took > w.Timeout/2 {
		t.Errorf("that took %s", took)
	}
}
