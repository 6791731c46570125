//go:build kubeapi

package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// How many services a node has, each with two pods but for every hundredth, which has none, and how many are created at a time.
const (
	services  = 5000
	endpoints = 2 * (services - services/100)
	atOnce    = 16
)

// proxyTime is how long kube-proxy may take to program all services on a busy machine.
const proxyTime = 10 * time.Minute

var tracePrograms = nettest.Programs("../../plugin/detourctl", "../../scripts/bench/maxrss")

// proxyModes are kube-proxy's modes. list prints the rules, which have endpoint in them once for each endpoint, and flag is how
// detourctl trace reads them.
var proxyModes = []struct {
	mode, endpoint, flag string
	list                 []string
}{
	{"iptables", "--to-destination ", "--iptables-save", []string{"iptables-save"}},
	{"nftables", `"dnat": `, "--nft", []string{"nft", "-j", "list", "ruleset"}},
}

// kube-proxy itself programs the node of a large cluster, and detourctl trace finds its way through: in the rules that a program has
// printed, and in the kernel's. DETOUR_RULES names a folder that keeps the rules. The test prints the time and the memory of trace,
// which it does not limit.
func TestServicesOfALargeClusterAreTraced(t *testing.T) {
	nettest.RequireNetns(t)
	createServices(t)
	folder := os.Getenv("DETOUR_RULES")
	if folder == "" {
		folder = t.TempDir()
	}
	for _, m := range proxyModes {
		t.Run(m.mode, func(t *testing.T) {
			ns, rules := crowdedNode(t, m.mode, m.endpoint, m.list)
			file := filepath.Join(folder, m.mode)
			if err := os.WriteFile(file, rules, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, where := range []string{m.flag + "=" + file, "--netns=" + ns.Path()} {
				wantTraced(t, where, 1234, "accepted to "+podIP(1234, 0)+":8080 with 0.5", "accepted to "+podIP(1234, 1)+":8080 with 0.5")
				wantTraced(t, where, 1200, "rejected to VIP:80 with 1")
			}
		})
	}
}

// createServices creates the node and the services, with the endpoints that a controller would find.
func createServices(t *testing.T) {
	t.Helper()
	create(t, "/api/v1/nodes", "{apiVersion: v1, kind: Node, metadata: {name: crowded}, status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}}")
	create(t, "/api/v1/namespaces", "{apiVersion: v1, kind: Namespace, metadata: {name: crowd}}")
	numbers := make(chan int)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for n := range numbers {
				createService(t, n)
			}
		})
	}
	for n := range services {
		numbers <- n
	}
	close(numbers)
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// createService creates the service of a number. A few send a client always to the same pod, or have a port of the node.
func createService(t *testing.T, n int) {
	more := ""
	switch n % 100 {
	case 1:
		more = ", sessionAffinity: ClientIP"
	case 2, 3, 4, 5, 6:
		more = ", type: NodePort"
	}
	create(t, "/api/v1/namespaces/crowd/services", fmt.Sprintf(
		"{apiVersion: v1, kind: Service, metadata: {name: s%d}, spec: {ports: [{name: http, port: 80, targetPort: 8080}]%s}}", n, more))
	if n%100 == 0 {
		return
	}
	create(t, "/apis/discovery.k8s.io/v1/namespaces/crowd/endpointslices", fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
		metadata: {name: s%[1]d, labels: {kubernetes.io/service-name: s%[1]d}}, addressType: IPv4,
		ports: [{name: http, port: 8080}], endpoints: [{addresses: [%[2]s]}, {addresses: [%[3]s]}]}`, n, podIP(n, 0), podIP(n, 1)))
}

// podIP is the address of a service's first or second pod.
func podIP(service, which int) string {
	return fmt.Sprintf("10.%d.%d.%d", 224+which, service/200, 1+service%200)
}

// create creates an object, YAML.
func create(t *testing.T, path, text string) {
	t.Helper()
	o, err := parseObject([]byte(text))
	if err == nil {
		_, err = kubernetes.admin.expect(http.MethodPost, path, o.Object, http.StatusCreated)
	}
	if err != nil {
		t.Error(err)
	}
}

// wantTraced wants that a packet of the node to the service has these ways, likely the same.
func wantTraced(t *testing.T, where string, service int, want ...string) {
	t.Helper()
	answer, err := kubernetes.admin.expect(http.MethodGet, fmt.Sprintf("/api/v1/namespaces/crowd/services/s%d", service), nil, http.StatusOK)
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ Spec struct{ ClusterIP string } }
	if err := json.Unmarshal(answer, &s); err != nil {
		t.Fatal(err)
	}
	programs := tracePrograms(t)
	trace := exec.Command(filepath.Join(programs, "detourctl"), "trace", where, "-o=json",
		"--out", "--from=10.9.0.1", "--to="+s.Spec.ClusterIP+":80", "--to-iface=eth0")
	began := time.Now()
	out, err := trace.Output()
	took := time.Since(began)
	exit, rejected := errors.AsType[*exec.ExitError](err)
	if rejected && exit.ExitCode() != 1 {
		t.Fatalf("%q: %v: %s", trace.Args, err, exit.Stderr)
	}
	var traced struct {
		Ways []struct {
			Probability float64
			Verdict     string
			Packet      struct{ To string }
		}
	}
	if err := json.Unmarshal(out, &traced); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range traced.Ways {
		got = append(got, fmt.Sprintf("%s to %s with %g", w.Verdict, w.Packet.To, w.Probability))
	}
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "VIP", s.Spec.ClusterIP)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("service %d: %q, want %q", service, got, want)
	}
	if rejected {
		return
	}
	kilobytes, err := exec.Command(filepath.Join(programs, "maxrss"), trace.Args...).Output()
	cpu := trace.ProcessState.UserTime() + trace.ProcessState.SystemTime()
	t.Logf("trace %s: %.2f s, of them %.2f s of a CPU, %s KiB (%v)", where, took.Seconds(), cpu.Seconds(), bytes.TrimSpace(kilobytes), err)
}

// crowdedNode is a network namespace in which kube-proxy runs, once all endpoints have rules, and the rules.
func crowdedNode(t *testing.T, mode, endpoint string, list []string) (*nettest.Namespace, []byte) {
	t.Helper()
	runtime.LockOSThread() // for startProcess, until the test ends
	ns := nettest.StartNamespace(t, "crowded")
	if err := ns.Do(func() error {
		const links = "ip link add eth0 type bridge; ip addr add 10.9.0.1/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.0.254"
		return exec.Command("sh", "-euc", links).Run()
	}); err != nil {
		t.Fatal(err)
	}
	relay(t, ns)
	proxy, err := startProcess(t.TempDir(), "nsenter", "--net="+ns.Path(), programBeside("kube-proxy"), "--config="+proxyConfig(t, mode))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.stop)
	deadline := time.Now().Add(proxyTime)
	for {
		rules, err := exec.Command("nsenter", append([]string{"--net=" + ns.Path()}, list...)...).Output()
		if err != nil {
			t.Fatalf("%s: %v", list[0], err)
		}
		got := bytes.Count(rules, []byte(endpoint))
		if got == endpoints {
			return ns, rules
		}
		select {
		case <-proxy.ended:
			t.Fatalf("kube-proxy has ended; %s", proxy.tail())
		case <-time.After(time.Second):
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s there are rules for %d endpoints, want %d; %s", proxyTime, got, endpoints, proxy.tail())
		}
	}
}

func proxyConfig(t *testing.T, mode string) string {
	t.Helper()
	conf, err := kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kube-proxy.yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clientConnection: {kubeconfig: %q}
clusterCIDR: 10.224.0.0/15
hostnameOverride: crowded
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, mode, conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// relay makes the API server answer at its address in a network namespace too.
func relay(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", kubernetes.port)
	var inside net.Listener
	if err := ns.Do(func() (err error) {
		inside, err = net.Listen("tcp4", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inside.Close() })
	go func() {
		for {
			from, err := inside.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp4", address)
			if err != nil {
				from.Close()
				continue
			}
			go pass(from, to)
			go pass(to, from)
		}
	}()
}

// pass copies until either end is closed, and closes both.
func pass(from, to net.Conn) {
	_, _ = io.Copy(to, from) // the other pass may have closed them
	from.Close()
	to.Close()
}
