package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/conns"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// redis is a pod of istio whose proxy passes on what goes to port 7003, but answers itself what goes to 7000. Port 6379 is excluded.
type redis struct {
	*nettest.World
	app, proxy, outside nettest.Process
}

func startRedis(t *testing.T) redis {
	t.Helper()
	decision, err := testcase.Find(t, "../..", "istio/outbound-exclude-ports").Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	w := nettest.StartWorld(t)
	ns, err := netns.Open(w.Pod.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		program, err := backend.Prepare(t.Context(), backend.IPTables, decision.Policy.Ruleset(), decision.Families)
		if err != nil {
			return err
		}
		return program.Apply(t.Context(), nil, attachment.Record{})
	})
	if err != nil {
		t.Fatal(err)
	}
	r := redis{
		World:   w,
		app:     nettest.Process{Namespace: w.Pod, UID: nettest.AppUID, GID: nettest.AppGID},
		proxy:   nettest.Process{Namespace: w.Pod, UID: 1337, GID: 1337},
		outside: nettest.Process{Namespace: w.Outside},
	}
	r.listen(t, r.outside, 7000, nettest.Named("redis"))
	r.listen(t, r.outside, 7003, nettest.Named("redis"))
	relay := r.proxy.Relay(func(to netip.AddrPort) netip.AddrPort {
		if to.Port() == 7000 {
			return netip.AddrPort{}
		}
		return to
	})
	r.listen(t, r.proxy, 15001, relay)
	r.listen(t, r.proxy, 15006, relay)
	return r
}

func (r redis) listen(t *testing.T, p nettest.Process, port uint16, banner nettest.Banner) {
	t.Helper()
	l, err := p.Listen(port, banner)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func (r redis) ask(t *testing.T, to, want string) {
	t.Helper()
	if got, err := r.app.Ask(nettest.Call{Destination: netip.MustParseAddrPort(to)}); err != nil || got != want {
		t.Fatalf("%s answers %q, %v", to, got, err)
	}
}

// envoy serves recorded answers at Envoy's admin port in the pod.
func (r redis) envoy(t *testing.T, config string) {
	t.Helper()
	files := map[string]string{"/server_info": "server_info.json", "/config_dump": config, "/clusters": "clusters.json"}
	answers := map[string][]byte{}
	for path, name := range files {
		data, err := os.ReadFile("../../pkg/conns/envoy/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		answers[path] = data
	}
	var l net.Listener
	err := r.Pod.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:15000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { w.Write(answers[q.URL.Path]) })}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}

// conns runs detourctl conns on the pod and returns what it prints and its exit code.
func (r redis) conns(t *testing.T, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	code, err := codeOf(newConns(&out, append([]string{"--netns", r.Pod.Path()}, args...)...).ExecuteContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), code
}

func newConns(out io.Writer, args ...string) *cobra.Command {
	c := connsCommand()
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetArgs(args)
	c.SetOut(out)
	return c
}

// codeOf is the exit code of err, or err if it has none.
func codeOf(err error) (int, error) {
	if ended, ok := errors.AsType[codeError](err); ok {
		return ended.code, ended.err
	}
	return 0, err
}

func TestConnsOfRedis(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	for range 3 {
		r.ask(t, "10.0.0.6:7000", "HTTP/1.1 400 Bad Request\r")
	}
	r.ask(t, "10.0.0.6:7003", "redis 7003")
	accepted, release, ended := make(chan bool), make(chan bool), make(chan bool)
	r.listen(t, r.outside, 6379, func(*net.TCPConn) string {
		accepted <- true
		<-release
		return "bye"
	})
	go func() {
		defer close(ended)
		_, _ = r.app.Ask(nettest.Call{Destination: netip.MustParseAddrPort("10.0.0.6:6379")})
	}()
	defer func() { close(release); <-ended }()
	<-accepted

	text, code := r.conns(t)
	text = regexp.MustCompile(`:\d{5} ->`).ReplaceAllString(text, ":40000 ->")
	text = regexp.MustCompile(`  idle for \d+ s`).ReplaceAllString(text, "")
	want := r.Pod.Path() + `: the proxy is user 1337 and listens at 15001, 15006

out tcp 10.0.0.6:7000: 3 connections reached the proxy, none left it
  unless 10.0.0.6:7000 refused them: the kernel forgets a refused connection at once; --watch would see it
  to do: add 7000 to the pod's annotation traffic.sidecar.istio.io/excludeOutboundPorts, and restart the pod; or make a ServiceEntry with address 10.0.0.6 and port 7000 of protocol TCP
    10.77.0.2:40000 -> 10.0.0.6:7000 -> port 15001  to the proxy, and no further  TIME_WAIT
    10.77.0.2:40000 -> 10.0.0.6:7000 -> port 15001  to the proxy, and no further  TIME_WAIT
    10.77.0.2:40000 -> 10.0.0.6:7000 -> port 15001  to the proxy, and no further  TIME_WAIT

out tcp 10.0.0.6:7003: 1 connection reached the proxy, 1 left it
    10.77.0.2:40000 -> 10.0.0.6:7003 -> port 15001  to the proxy, and onward  TIME_WAIT
    10.77.0.2:40000 -> 10.0.0.6:7003  by the proxy (inferred)  TIME_WAIT

out tcp 10.0.0.6:6379: 1 connection went direct
    10.77.0.2:40000 -> 10.0.0.6:6379  direct  ESTABLISHED  by table ip nat chain ISTIO_OUTPUT rule 1: -p tcp -m tcp --dport 6379 -j RETURN
`
	if text != want || code != exitFinding {
		t.Errorf("exit code %d\n%s", code, text)
	}

	r.envoy(t, "istio-registry-only.json")
	text, _ = r.conns(t)
	for _, line := range []string{
		"listens at 15001, 15006; it is Envoy\n",
		"  Envoy's listener 0.0.0.0_7000 (0.0.0.0:7000) takes it, made for redis-ui.shop.svc.cluster.local:7000: HTTP goes by routes 7000 " +
			"(Envoy answers requests to the address itself with 502); everything else goes by filter chain PassthroughFilterChain to " +
			"BlackHoleCluster, which has no endpoint: Envoy closes it\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in\n%s", line, text)
		}
	}
	text, code = r.conns(t, "-o", "json")
	var a connsAnswer
	if err := json.Unmarshal([]byte(text), &a); err != nil || code != exitFinding {
		t.Fatalf("%v, exit code %d\n%s", err, code, text)
	}
	d := a.Destinations[0]
	if d.To.String() != "10.0.0.6:7000" || d.Way != conns.Swallowed || d.Reached != 3 || d.Envoy.Listener != "0.0.0.0_7000" || a.Envoy != "" {
		t.Errorf("%s", text)
	}
}

func TestConnsExitCodes(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	text, code := r.conns(t)
	if code != 0 || strings.Count(text, "\n") != 2 || !strings.HasSuffix(text, "\nno connections\n") {
		t.Errorf("without connections: %d\n%s", code, text)
	}
	r.ask(t, "10.0.0.6:7003", "redis 7003")
	if text, code := r.conns(t); code != 0 {
		t.Errorf("passed on: %d\n%s", code, text)
	}
	for want, args := range map[string][]string{
		`no mesh is called "linkerd"`:   {"--netns", r.Pod.Path(), "--mesh", "linkerd"},
		"there is no network namespace": {"--netns", "/run/netns/none"},
		"is not NAMESPACE/NAME":         {"--pod", "web"},
		"it is the host's":              {"--netns", "/proc/thread-self/ns/net"},
		"is neither text nor json":      {"--netns", r.Pod.Path(), "-o", "yaml"},
	} {
		if err := newConns(io.Discard, args...).ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// The record of the pod says where it is, and which mesh it has: its proxy's ports alone would not.
func TestConnsByPod(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	programmed(t, state, backend.NFTables)
	var out bytes.Buffer
	code, err := codeOf(newConns(&out, "--pod", "shop/nftables", "--state-dir", state, "-o", "json").ExecuteContext(t.Context()))
	var a connsAnswer
	if err := errors.Join(err, json.Unmarshal(out.Bytes(), &a)); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	if a.Pod != "shop/nftables" || a.Proxy.Mesh != "osm" || len(a.Destinations) != 0 || !strings.Contains(a.Envoy, "no Envoy answers at the admin port") {
		t.Errorf("%s", out.String())
	}
	err = newConns(io.Discard, "--pod", "shop/none", "--state-dir", state).ExecuteContext(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no pod shop/none on this node") {
		t.Error(err)
	}
}

// Each line is an object. Ctrl-C ends the watch, with the exit code of what it saw.
func TestConnsWatch(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	in, out := io.Pipe()
	command := newConns(out, "--netns", r.Pod.Path(), "--watch", "-o", "json")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := codeOf(command.ExecuteContext(ctx))
		out.Close()
		ended <- result{code, err}
	}()
	go func() { // until the watch has begun, it sees nothing
		for ctx.Err() == nil {
			_, _ = r.app.Ask(nettest.Call{Destination: netip.MustParseAddrPort("10.0.0.6:7000")})
		}
	}()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var e conns.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		if e.Event == conns.End && e.Way == conns.Swallowed {
			break
		}
	}
	stop()
	go io.Copy(io.Discard, in)
	if got := <-ended; got.code != exitFinding || got.err != nil {
		t.Errorf("%+v", got)
	}
}
