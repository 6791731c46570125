//go:build kubeapi

package apitest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// How many services the node has, how many of them have endpoints, of two pods each, and how many requests run at a time.
const (
	services  = 5000
	withPods  = services - services/100
	endpoints = 2
	atOnce    = 16
)

// proxyTime is how long kube-proxy may take to program all services on a busy machine.
const proxyTime = 10 * time.Minute

// proxyModes are kube-proxy's modes, the command that prints its rules, and what each rule of an endpoint has in it.
var proxyModes = []struct {
	mode, file, endpoint string
	list                 []string
}{
	{"iptables", "iptables-save.txt", "--to-destination ", []string{"iptables-save"}},
	{"nftables", "nft.json", `"dnat": `, []string{"nft", "-j", "list", "ruleset"}},
}

// BenchmarkTraceWithManyServices traces in what kube-proxy itself programs for a node of a large cluster. DETOUR_RULES names a
// folder that keeps the rules.
func BenchmarkTraceWithManyServices(b *testing.B) {
	nettest.RequireNetns(b)
	createServices(b)
	for _, m := range proxyModes {
		b.Run(m.mode, func(b *testing.B) {
			rules := proxyRules(b, m.mode, m.endpoint, m.list)
			file := filepath.Join(rulesFolder(b), m.file)
			if err := os.WriteFile(file, rules, 0o600); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(len(rules))/1e6, "MB-rules")
		})
	}
}

func rulesFolder(b *testing.B) string {
	if folder := os.Getenv("DETOUR_RULES"); folder != "" {
		return folder
	}
	return b.TempDir()
}

// createServices creates the node and the services, with the endpoints that a controller would find.
var createServices = func() func(testing.TB) {
	var once sync.Once
	return func(t testing.TB) {
		once.Do(func() {
			create(t, "/api/v1/nodes", `{apiVersion: v1, kind: Node, metadata: {name: crowded},
				status: {addresses: [{type: InternalIP, address: 10.9.0.1}]}}`)
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
		})
	}
}()

// createService creates the service of a number. A few have no endpoints, send a client to one pod only, or are reached at
// a port of the node.
func createService(t testing.TB, n int) {
	more := ""
	switch n % 100 {
	case 1:
		more = ", sessionAffinity: ClientIP"
	case 2, 3, 4, 5, 6:
		more = ", type: NodePort"
	}
	create(t, "/api/v1/namespaces/crowd/services", fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {namespace: crowd, name: s%[1]d},
		spec: {ports: [{name: http, port: 80, targetPort: 8080}]%[2]s}}`, n, more))
	if n%100 == 0 {
		return
	}
	create(t, "/apis/discovery.k8s.io/v1/namespaces/crowd/endpointslices", fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice,
		metadata: {namespace: crowd, name: s%[1]d, labels: {kubernetes.io/service-name: s%[1]d}}, addressType: IPv4,
		ports: [{name: http, port: 8080}],
		endpoints: [{addresses: [10.224.%[2]d.%[3]d]}, {addresses: [10.225.%[2]d.%[3]d]}]}`, n, n/200, 1+n%200))
}

// create creates an object, YAML.
func create(t testing.TB, path, text string) {
	o, err := parseObject([]byte(text))
	if err == nil {
		_, err = kubernetes.admin.expect(http.MethodPost, path, o.Object, http.StatusCreated)
	}
	if err != nil {
		t.Error(err)
	}
}

// proxyRules runs kube-proxy in a network namespace until all endpoints have rules, and returns the rules.
func proxyRules(t testing.TB, mode, endpoint string, list []string) []byte {
	runtime.LockOSThread() // for startProcess
	defer runtime.UnlockOSThread()
	ns := nettest.StartNamespace(t, "crowded")
	relay(t, ns)
	conf, err := kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "kube-proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clientConnection: {kubeconfig: %q, qps: 100, burst: 100}
clusterCIDR: 10.224.0.0/15
hostnameOverride: crowded
healthzBindAddress: 127.0.0.1:10256
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, mode, conf), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(os.Getenv("DETOUR_KUBE_APISERVER")), "kube-proxy")
	proxy, err := startProcess(t.TempDir(), "nsenter", "--net="+ns.Path(), program, "--config="+config)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.stop()
	deadline := time.Now().Add(proxyTime)
	for {
		rules, err := exec.Command("nsenter", append([]string{"--net=" + ns.Path()}, list...)...).Output()
		if err != nil {
			t.Fatalf("%s: %v", list[0], err)
		}
		got := bytes.Count(rules, []byte(endpoint))
		if got == withPods*endpoints {
			return rules
		}
		select {
		case <-proxy.ended:
			t.Fatalf("kube-proxy has ended; %s", proxy.tail())
		case <-time.After(time.Second):
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s there are rules for %d endpoints, want %d; %s", proxyTime, got, withPods*endpoints, proxy.tail())
		}
	}
}

// relay makes the API server answer at its address in a network namespace too.
func relay(t testing.TB, ns *nettest.Namespace) {
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
	_, err := io.Copy(to, from)
	_ = errors.Join(err, from.Close(), to.Close()) // the other pass may have closed them
}
