package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestWithoutRulesAllIsDirect(t *testing.T) {
	t.Parallel()
	CheckPackets(t, StartWorld(t), parse(t, `
		out 1.1.1.1:80 -> outside
		out 2.2.2.9:80 uid=1500 -> outside
		out 10.77.0.1:443 -> outside           # outside's own address
		out 192.168.3.4:443 uid=0 -> outside
		out [2001:db8::1]:80 -> outside
		out [fd77::1]:443 -> outside
		out [fd00::9]:443 uid=1500 -> outside
		out 127.0.0.1:9000 -> app
		out 127.0.0.2:9000 uid=1500 -> app
		out [::1]:9000 -> app
		out 10.77.0.2:9001 uid=1500 -> app     # the pod calls itself
		out [fd77::2]:9001 -> app
		in 8080 -> app
		in4 15010 -> app
		in6 15011 -> app
	`), 15001, 15003)
}

// sidecar is a plain sidecar's rules, for both families: the proxy's own UID goes direct.
const sidecar = `*nat
-A OUTPUT -p tcp -m owner --uid-owner 1500 -j RETURN
-A OUTPUT -o lo -j RETURN
-A OUTPUT -p tcp --dport 6379 -j RETURN
-A OUTPUT -p tcp -j REDIRECT --to-ports 15001
-A PREROUTING -p tcp --dport 15010 -j RETURN
-A PREROUTING -p tcp -j REDIRECT --to-ports 15003
COMMIT
`

const sidecarPackets = `
	out 1.1.1.1:80 -> proxy 15001
	out 2.2.2.9:443 uid=0 -> proxy 15001
	out 2.2.2.9:443 uid=1499 -> proxy 15001
	out 2.2.2.9:443 uid=1500 -> outside
	out 1.1.1.1:6379 -> outside
	out 127.0.0.1:9000 -> app
	out [2001:db8::1]:80 -> proxy 15001
	out [2001:db8::1]:80 uid=1500 -> outside
	out [2001:db8::2]:6379 -> outside
	out [::1]:9000 -> app
	in 8080 -> proxy 15003
	in 15010 -> app
	in 15003 -> proxy 15003
`

func TestRedirect(t *testing.T) {
	t.Parallel()
	forBoth(t, func(t *testing.T, variant string) {
		w := StartWorld(t)
		restoreBoth(t, w.Pod, variant, sidecar)
		CheckPackets(t, w, parse(t, sidecarPackets), 15001, 15003)
	})
}

// forBoth runs the test with each variant of the iptables programs.
func forBoth(t *testing.T, test func(t *testing.T, variant string)) {
	t.Helper()
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel()
			test(t, variant)
		})
	}
}

// restoreBoth programs the same rules for both families.
func restoreBoth(t *testing.T, ns *Namespace, variant, rules string) {
	t.Helper()
	restore(t, ns, "iptables-"+variant, rules)
	restore(t, ns, "ip6tables-"+variant, rules)
}

// restore programs rules in ns with the restore sister of an iptables program.
func restore(t *testing.T, ns *Namespace, program, rules string) {
	t.Helper()
	RequireProgram(t, program+"-restore")
	cmd := exec.Command(program + "-restore")
	cmd.Stdin = strings.NewReader(rules)
	// The legacy lock is one file per host: don't take it.
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
	err := ns.Do(func() error {
		out, err := cmd.CombinedOutput()
		return wrap(string(out), err)
	})
	if err != nil {
		t.Fatalf("%s-restore: %v", program, err)
	}
}

// timeFor is how long a call may take that is to end so.
func timeFor(outcome string) time.Duration {
	if strings.HasSuffix(outcome, ErrTimeout.Error()) {
		return Silence
	}
	return Patience
}

// What a packet's outcome says where something other than the rules of TestRedirect happens to it.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restore(t, w.Pod, "iptables-nft", `*nat
-A OUTPUT -d 1.1.1.1/32 -p tcp -j REDIRECT --to-ports 4444
-A OUTPUT -d 2.2.2.2/32 -p tcp -j DNAT --to-destination 2.2.2.2:81
-A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 15003
-A PREROUTING -p tcp --dport 8081 -j REDIRECT --to-ports 15003
COMMIT
*filter
-A OUTPUT -d 3.3.3.3/32 -p tcp -j REJECT --reject-with tcp-reset
-A OUTPUT -d 4.4.4.4/32 -p tcp -j REJECT --reject-with icmp-host-unreachable
-A INPUT -s 5.5.5.5/32 -p tcp -j DROP
COMMIT
`)
	if err := w.Serve(parse(t, "out 9.9.9.9:80 -> outside\nout 9.9.9.9:81 -> outside\nin 8080 -> proxy 15003")); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"out 1.1.1.1:80 -> app": "error: refused",
		"out 2.2.2.2:80 -> app": "outside 81",
		"out 3.3.3.3:80 -> app": "error: refused",
		"out 4.4.4.4:80 -> app": "error: unreachable",
		"out 5.5.5.5:80 -> app": "error: timeout",
		"out 6.6.6.6:82 -> app": "error: refused", // nothing was served there
		"in 8080 -> app":        "IPv4 proxy 15003, IPv6 app",
		"in4 8081 -> app":       "proxy 15003",
		"in6 8081 -> app":       "error: refused",
	} {
		w.Timeout = timeFor(want)
		got, err := w.Send(parse(t, line)[0])
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", line, got, err, want)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ answer, dialed, want string }{
		{"app 80", "10.77.0.2:80", "app"},
		{"app 81", "10.77.0.2:80", "app 81"},
		{"outside 80", "1.1.1.1:80", "outside"},
		{"proxy 15001 original 1.1.1.1:80", "1.1.1.1:80", "proxy 15001"},
		{"proxy 15001 original 1.1.1.1:80", "1.1.1.1:8", "proxy 15001 original 1.1.1.1:80"},
		{"proxy 15001 original 1.1.1.1:80", "11.1.1.1:80", "proxy 15001 original 1.1.1.1:80"},
		{"proxy 15001 original [2001:db8::1]:80", "[2001:db8::1]:80", "proxy 15001"},
		{"proxy 15001 original unknown", "1.1.1.1:80", "proxy 15001 original unknown"},
	} {
		if got := judge(c.answer, netip.MustParseAddrPort(c.dialed)); got != c.want {
			t.Errorf("%q for %s: got %q, want %q", c.answer, c.dialed, got, c.want)
		}
	}
}

// A proxy may listen on one socket for both families; then IPv4 peers appear in IPv6 form.
func TestOriginalDstOfDualStackSocket(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	restoreBoth(t, w.Pod, "nft", sidecar)
	l := &Listener{}
	t.Cleanup(func() { closeOrFail(t, l) })
	err := w.Pod.Do(func() error {
		socket, err := net.Listen("tcp", "[::]:15001")
		if err != nil {
			return err
		}
		l.sockets = []io.Closer{socket}
		l.running.Go(func() { l.acceptAll(socket, line(Proxy)) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []string{"1.1.1.1:80", "[2001:db8::1]:80"} {
		got, err := Dial(w.Pod, AppUID, netip.MustParseAddrPort(dst), Patience)
		if want := "proxy 15001 original " + dst; err != nil || got != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

// An untranslated connection to the proxy, with nothing to track it, has no original destination.
func TestProxyWithoutRules(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	p := parse(t, "out 127.0.0.1:15001 -> proxy 15001")
	if err := w.Serve(p); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Send(p[0]); err != nil || got != "proxy 15001 original unknown" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Dials with different UIDs at the same time must not see each other's.
func TestDialInParallelAsManyUsers(t *testing.T) {
	t.Parallel()
	w := StartWorld(t)
	const users = 40
	var rules strings.Builder
	rules.WriteString("*nat\n")
	for i := range users {
		fmt.Fprintf(&rules, "-A OUTPUT -p tcp -m owner --uid-owner %d -j REDIRECT --to-ports %d\n", 2000+i, 15001+i)
	}
	rules.WriteString("COMMIT\n")
	restore(t, w.Pod, "iptables-nft", rules.String())
	var packets []Packet
	for i := range users {
		packets = append(packets, parse(t, fmt.Sprintf("out 1.1.1.1:80 uid=%d -> proxy %d", 2000+i, 15001+i))...)
	}
	if err := w.Serve(packets); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, users)
	for _, p := range packets {
		go func() {
			got, err := w.Send(p)
			if err == nil && got != p.Want.String() {
				err = fmt.Errorf("%s: got %s", p, got)
			}
			results <- err
		}()
	}
	var errs []error
	for range users {
		errs = append(errs, <-results)
	}
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

func TestDialSilentListener(t *testing.T) {
	t.Parallel()
	ns := StartNamespace(t, "silent")
	var socket net.Listener
	err := ns.Do(func() (err error) { socket, err = net.Listen("tcp4", "127.0.0.1:80"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	go func() {
		for conn, err := socket.Accept(); err == nil; conn, err = socket.Accept() {
			conn.Close()
		}
	}()
	if got, err := Dial(ns, AppUID, netip.MustParseAddrPort("127.0.0.1:80"), Patience); !errors.Is(err, ErrSilent) {
		t.Errorf("got %q, %v", got, err)
	}
}
