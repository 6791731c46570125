package cniplugin_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// haproxyTime is for HAProxy to start, and for a whole conversation through it.
const haproxyTime = time.Minute

// haproxyGlobal runs HAProxy as the sidecar's user; its control socket answers once the listeners stand. Its few
// connections end one that goes round in circles.
const haproxyGlobal = `
global
	nbthread 1
	maxconn 40
	stats socket %s
	%s
defaults
	mode tcp
	timeout connect 1m
	timeout client 1m
	timeout server 1m
`

// Without an address of its own a server is the connection's original destination. HAProxy asks the kernel for that of
// IPv4 connections only; redirected ones of IPv6 go where the configuration says. The PROXY line says who called whom, as
// HAProxy saw it.
const haproxyOutbound = `
frontend outbound4
	bind 0.0.0.0:15001
	use_backend itself if { dst 10.96.0.1 }
	default_backend original
frontend outbound6
	bind [::]:15001 v6only
	default_backend outside
backend original
	server original 0.0.0.0 send-proxy
backend outside
	server outside [2001:db8::9]:80 send-proxy
backend itself
	server itself 10.77.0.2
`

// OSM's sidecar reaches the application on localhost.
const haproxyOSM = haproxyOutbound + `
frontend inbound4
	bind 0.0.0.0:15003
	default_backend app4
frontend inbound6
	bind [::]:15003 v6only
	default_backend app6
backend app4
	server app 127.0.0.1 send-proxy
backend app6
	server app [::1]:8080 send-proxy
`

// istio's reaches it where it was called, from an address by which the rules know the sidecar.
const haproxyIstio = haproxyOutbound + `
frontend inbound4
	bind 0.0.0.0:15006 %[1]s
	default_backend app4
frontend inbound6
	bind [::]:15006 v6only %[1]s
	default_backend app6
backend app4
	source 127.0.0.6
	server app 0.0.0.0 send-proxy
backend app6
	source [::6]
	server app %[2]s send-proxy
`

const (
	haproxyIstioPod = `{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: web, uid: uid-1,
  annotations: {sidecar.istio.io/status: "{}", sidecar.istio.io/interceptionMode: %s}},
  spec: {containers: [{name: app, securityContext: {runAsUser: 1000}},
    {name: istio-proxy, args: [proxy, sidecar], securityContext: {runAsUser: %d, runAsGroup: 1337}, env: [{name: ISTIO_DUAL_STACK, value: "true"}]}]}}`

	podIPConfig = `{apiVersion: config.openservicemesh.io/v1alpha2, kind: MeshConfig, metadata: {namespace: osm-system, name: osm-mesh-config},
  spec: {sidecar: {localProxyMode: PodIP}}}`
)

// conversation is a client's call, and what the server at its end says of it.
type conversation struct {
	from      string // the client's namespace
	to, reply string
}

var (
	outbound = []conversation{
		{"pod", "9.9.9.9:80", "outside at 9.9.9.9:80 from 10.77.0.2: 10.77.0.2 called 9.9.9.9:80"},
		{"pod", "[2001:db8::9]:80", "outside at [2001:db8::9]:80 from fd77::2: fd77::2 called ::1:15001"},
	}
	toLocalhost = []conversation{
		{"outside", "10.77.0.2:8080", "app at 127.0.0.1:8080 from 127.0.0.1: 10.77.0.1 called 10.77.0.2:8080"},
		{"outside", "[fd77::2]:8080", "app at [::1]:8080 from ::1: fd77::1 called fd77::2:15003"},
	}
	toPodIP = []conversation{
		{"outside", "10.77.0.2:8080", "app at 10.77.0.2:8080 from 127.0.0.1: 10.77.0.1 called 10.77.0.2:8080"},
		{"outside", "[fd77::2]:8080", "app at [fd77::2]:8080 from ::1: fd77::1 called fd77::2:15003"},
		// The pod calls its own service: out through the sidecar, and back in through it.
		{"pod", "10.96.0.1:8080", "app at 10.77.0.2:8080 from 127.0.0.1: 10.77.0.2 called 10.77.0.2:8080"},
	}
	passedThrough = []conversation{
		{"outside", "10.77.0.2:8080", "app at 10.77.0.2:8080 from 127.0.0.6: 10.77.0.1 called 10.77.0.2:8080"},
		{"outside", "[fd77::2]:8080", "app at [fd77::2]:8080 from ::6: fd77::1 called fd77::2:15006"},
		{"pod", "10.96.0.1:8080", "app at 10.77.0.2:8080 from 127.0.0.6: 10.77.0.2 called 10.77.0.2:8080"},
	}
	// TPROXY changes no address.
	handedOver = []conversation{
		{"outside", "10.77.0.2:8080", "app at 10.77.0.2:8080 from 127.0.0.6: 10.77.0.1 called 10.77.0.2:8080"},
		{"outside", "[fd77::2]:8080", "app at [fd77::2]:8080 from ::6: fd77::1 called fd77::2:8080"},
	}
)

// sidecar is a mesh with HAProxy in the place of its proxy.
type sidecar struct {
	mesh, user, config string
	manifests          []string
	conversations      [][]conversation
}

var sidecars = map[string]sidecar{
	"osm": {
		mesh: "osm", user: "uid 1500", config: haproxyOSM, manifests: []string{meshedPod()},
		conversations: [][]conversation{outbound, toLocalhost},
	},
	"osm with PodIP": {
		mesh: "osm-v1", user: "uid 1500", config: haproxyOSM, manifests: []string{meshedPod(), podIPConfig},
		conversations: [][]conversation{outbound, toPodIP},
	},
	"istio": {
		mesh: "istio", user: "uid 1337\n\tgid 1337", config: fmt.Sprintf(haproxyIstio, "", "[fd77::2]:8080"), manifests: []string{fmt.Sprintf(haproxyIstioPod, "REDIRECT", 1337)},
		conversations: [][]conversation{outbound, passedThrough},
	},
	// With TPROXY istio's sidecar is root, and the rules know it by its group.
	"istio with TPROXY": {
		mesh: "istio", user: "gid 1337", config: fmt.Sprintf(haproxyIstio, "transparent", "0.0.0.0"), manifests: []string{fmt.Sprintf(haproxyIstioPod, "TPROXY", 0)},
		conversations: [][]conversation{outbound, handedOver},
	},
}

func TestHAProxyAsTheSidecar(t *testing.T) {
	t.Parallel()
	for name, s := range sidecars {
		for _, backend := range []string{"iptables", "nftables"} {
			t.Run(name+"/"+backend, func(t *testing.T) {
				t.Parallel()
				a, w := s.start(t, backend)
				a.must("CHECK")
				for _, list := range s.conversations {
					for _, c := range list {
						if got := c.have(w, haproxyTime); got != c.reply {
							t.Errorf("from the %s to %s:\ngot  %s\nwant %s", c.from, c.to, got, c.reply)
						}
					}
				}
			})
		}
	}
}

// What HAProxy sends comes back to it where no rule lets its user go, and the conversations above see that.
func TestHAProxyCallsItselfWithoutTheOwnersRule(t *testing.T) {
	t.Parallel()
	a, w := sidecars["osm"].start(t, "iptables")
	a.shell("iptables -t nat -D PROXY_OUTPUT -m owner --uid-owner 1500 -j RETURN")
	if got := outbound[0].have(w, time.Second); strings.HasPrefix(got, "outside") {
		t.Errorf("answered: %s", got)
	}
}

// start builds the world of a pod that ADD has programmed, with the application, a server outside and HAProxy.
func (s sidecar) start(t *testing.T, backend string) (*attachment, *nettest.World) {
	t.Helper()
	a, w := newAttachment(t, s.manifests...), nettest.StartWorld(t)
	a.ns, a.env["CNI_NETNS"] = w.Pod, w.Pod.Path()
	a.conf["mesh"], a.conf["backend"] = s.mesh, backend
	a.must("ADD")
	a.startHAProxy(fmt.Sprintf(haproxyGlobal, a.path("haproxy"), s.user) + s.config)
	listen(t, nettest.Process{Namespace: w.Outside}, 80, "outside")
	listen(t, nettest.Process{Namespace: w.Pod, UID: nettest.AppUID, GID: nettest.AppGID}, 8080, "app")
	return a, w
}

func (a *attachment) startHAProxy(config string) {
	a.t.Helper()
	nettest.RequireProgram(a.t, "haproxy")
	a.file("haproxy.cfg", config)
	cmd := exec.Command("haproxy", "-db", "-f", a.path("haproxy.cfg"))
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := a.ns.Do(cmd.Start); err != nil {
		a.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	a.t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(haproxyTime); !answers(a.path("haproxy")); time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			a.t.Fatalf("haproxy: %v: %s", err, output.String())
		default:
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("haproxy does not answer at %s after %s", a.path("haproxy"), haproxyTime)
		}
	}
}

// answers asks HAProxy's control socket anything.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(haproxyTime))
	fmt.Fprintln(conn, "show version")
	n, err := conn.Read(make([]byte, 1))
	return n == 1 && err == nil
}

// listen serves what only HAProxy can call: it waits for the PROXY line.
func listen(t *testing.T, p nettest.Process, port uint16, name string) {
	t.Helper()
	l, err := p.Listen(port, func(conn *net.TCPConn) string {
		line, err := bufio.NewReader(conn).ReadString('\n')
		words := strings.Fields(line)
		if err != nil || len(words) != 6 {
			return fmt.Sprintf("%s, called without a proxy: %q, %v", name, line, err)
		}
		peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		return fmt.Sprintf("%s at %s from %s: %s called %s:%s", name, conn.LocalAddr(), peer, words[2], words[3], words[5])
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// have has the conversation and returns what the server said, or the error.
func (c conversation) have(w *nettest.World, timeout time.Duration) string {
	client := nettest.Process{Namespace: w.Outside}
	if c.from == "pod" {
		client = nettest.Process{Namespace: w.Pod, UID: nettest.AppUID, GID: nettest.AppGID}
	}
	reply, err := client.Ask(nettest.Call{Destination: netip.MustParseAddrPort(c.to), Timeout: timeout})
	if err != nil {
		return "error: " + err.Error()
	}
	return reply
}
