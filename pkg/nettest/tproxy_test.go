package nettest

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const tproxy = `*mangle
-A PREROUTING -p tcp --dport 15020 -j RETURN
-A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j MARK --set-mark 1337
-A PREROUTING -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A PREROUTING ! -i lo -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337/0xffffffff
COMMIT
`

// routeMarked hands marked packets to the namespace itself, whatever their destination is.
func routeMarked(t *testing.T, ns *Namespace) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		run(t, ns, "ip", family, "rule", "add", "fwmark", "1337", "lookup", "133")
		run(t, ns, "ip", family, "route", "add", "local", "default", "dev", "lo", "table", "133")
	}
}

// run runs a program in the namespace.
func run(t *testing.T, ns *Namespace, program string, args ...string) {
	t.Helper()
	RequireProgram(t, program)
	err := ns.Do(func() error {
		out, err := exec.Command(program, args...).CombinedOutput()
		return wrap(string(out), err)
	})
	if err != nil {
		t.Fatalf("%s %s: %v", program, strings.Join(args, " "), err)
	}
}

func TestTPROXY(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		w.ProxyUID, w.ProxyGID = 1337, 1337
		packets := parse(t, `
			in 8080 -> proxy 15006
			in via=net1 8080 -> proxy 15006
			in 15020 -> app
			in udp 8080 -> app
			guest 1.1.1.1:80 -> proxy 15006
			guest [2001:db8::1]:80 -> proxy 15006
			out 127.0.0.1:9000 -> app
		`)
		restoreBoth(t, w.Pod, variant, tproxy)
		routeMarked(t, w.Pod)
		CheckPackets(t, w, packets)
	})
}

// Without the route a packet for elsewhere that TPROXY gave a socket would be forwarded, which the kernel doesn't do;
// without conntrack the kernel remembers nothing, and the local address is the original one all the same.
func TestTPROXYWithoutRoute(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restoreBoth(t, w.Pod, "nft", "*mangle\n-A PREROUTING ! -i lo -p tcp -m socket --transparent -j ACCEPT\n"+
		"-A PREROUTING ! -i lo -p tcp -j TPROXY --on-port 15006 --tproxy-mark 1337\nCOMMIT\n")
	CheckPackets(t, w, parse(t, `
		guest 1.1.1.1:80 -> error: timeout
		guest [2001:db8::1]:80 -> error: timeout
		in 8080 -> proxy 15006
	`), 15006)
}

// TPROXY gives nothing to a listener that isn't transparent.
func TestListenTransparent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		listen func(Process, uint16, Banner) (*Listener, error)
		want   error
		time   time.Duration
	}{
		"transparent": {Process.ListenTransparent, nil, Patience},
		"ordinary":    {Process.Listen, ErrTimeout, Silence},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := StartWorld(t)
			restoreBoth(t, w.Pod, "nft", tproxy)
			routeMarked(t, w.Pod)
			l, err := c.listen(Process{w.Pod, 1337, 1337}, 15006, ProxyAt(15006))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closeOrFail(t, l) })
			for _, dst := range []string{"10.77.0.2:8080", "[fd77::2]:8080"} {
				got, err := own(w.Outside).Ask(Call{Destination: netip.MustParseAddrPort(dst), Timeout: c.time})
				if !errors.Is(err, c.want) || err == nil && got != "proxy 15006 original "+dst {
					t.Errorf("%s: got %q, %v; want %v", dst, got, err, c.want)
				}
			}
		})
	}
}
