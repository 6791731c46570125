package nettest

import (
	"errors"
	"math"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestGroupOwner(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		restoreBoth(t, w.Pod, variant, `*nat
-A OUTPUT -m owner --gid-owner 1337 -j RETURN
-A OUTPUT -p tcp -m owner --gid-owner 0 -j REDIRECT --to-ports 15000
-A OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A OUTPUT -p udp -j REDIRECT --to-ports 15053
COMMIT
`)
		CheckPackets(t, w, parse(t, `
			out 1.1.1.1:80 -> proxy 15001
			out 1.1.1.1:80 uid=1337 -> proxy 15001
			out 1.1.1.1:80 gid=1336 -> proxy 15001
			out 1.1.1.1:80 gid=0 -> proxy 15000
			out 1.1.1.1:80 gid=1337 -> outside
			out [2001:db8::1]:80 uid=1500 gid=1337 -> outside
			out [2001:db8::1]:80 uid=0 gid=1000 -> proxy 15001
			out udp 1.1.1.1:53 gid=1337 -> outside
			out udp 1.1.1.1:53 -> proxy 15053
		`))
	})
}

// Self-calls of a proxy that binds to the passthrough address.
func TestSource(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restore(t, w.Pod, "iptables-nft", "*nat\n-A OUTPUT -o lo -s 127.0.0.6/32 -j RETURN\n-A OUTPUT -o lo -p tcp -j REDIRECT --to-ports 15006\nCOMMIT\n")
	restore(t, w.Pod, "ip6tables-nft", "*nat\n-A OUTPUT -o lo -s ::6/128 -j RETURN\n-A OUTPUT -o lo -p tcp -j REDIRECT --to-ports 15006\nCOMMIT\n")
	six := parse(t, "out [fd77::2]:8080 src=::6 -> app")
	if err := w.Serve(six); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Send(six[0]); err == nil {
		t.Errorf("from an address that the pod has not: got %q", got)
	}
	run(t, w.Pod, "ip", "-6", "addr", "add", "::6/128", "dev", "lo", "nodad")
	CheckPackets(t, w, append(six, parse(t, `
		out 10.77.0.2:8080 src=127.0.0.6 -> app
		out 10.77.0.2:8080 src=127.0.0.7 -> proxy 15006
		out 10.77.0.2:8080 uid=1337 -> proxy 15006
		out [fd77::2]:8080 uid=1337 -> proxy 15006
		out 127.0.0.1:8080 src=10.77.0.2 -> proxy 15006
		out 1.1.1.1:8080 src=10.77.0.2 -> outside
	`)...))
}

// The sockets that a listener accepts belong to its process: here a rule for its UID or GID cuts the answer off.
func TestAcceptedSocketsHaveTheOwner(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restoreBoth(t, w.Pod, "nft", `*filter
-A OUTPUT -p tcp --sport 9000:9009 --tcp-flags PSH PSH -m owner --uid-owner 1337 -j REJECT --reject-with tcp-reset
-A OUTPUT -p tcp --sport 9000:9009 --tcp-flags PSH PSH -m owner --gid-owner 1338 -j REJECT --reject-with tcp-reset
COMMIT
`)
	for port, c := range map[uint16]struct {
		p    Process
		want error
		time time.Duration
	}{
		9000: {Process{w.Pod, 0, 0}, nil, Patience},
		9001: {Process{w.Pod, 1337, 0}, ErrTimeout, Silence},
		9002: {Process{w.Pod, 0, 1338}, ErrTimeout, Silence},
		9003: {Process{w.Pod, 1338, 1337}, nil, Patience},
	} {
		l, err := c.p.Listen(port, Named("app"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeOrFail(t, l) })
		for _, host := range []netip.Addr{PodIPv4, PodIPv6} {
			got, err := own(w.Outside).Ask(Call{Destination: netip.AddrPortFrom(host, port), Timeout: c.time})
			if !errors.Is(err, c.want) {
				t.Errorf("%d of %s: got %q, %v; want %v", port, host, got, err, c.want)
			}
		}
	}
}

// The highest ID is the kernel's word for none: it can't be become.
func TestBecomeFails(t *testing.T) {
	t.Parallel()
	ns := StartNamespace(t, "become")
	for _, p := range []Process{{ns, math.MaxUint32, 0}, {ns, 0, math.MaxUint32}} {
		if got, err := p.Ask(Call{Destination: netip.MustParseAddrPort("127.0.0.1:80")}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("ask: got %q, %v", got, err)
		}
		if l, err := p.Listen(80, Named("app")); !errors.Is(err, os.ErrPermission) {
			t.Errorf("listen: got %v, %v", l, err)
		}
	}
}
