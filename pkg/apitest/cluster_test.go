//go:build kubeapi

package apitest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// How long a start may take on a busy machine, how long a change of RBAC or of a CRD, how long one request, and how long to
// wait before asking again.
const (
	startTime   = 5 * time.Minute
	settleTime  = 20 * time.Second
	requestTime = time.Minute
	pollTime    = 50 * time.Millisecond
)

// cluster is a Kubernetes without nodes and controllers: etcd and kube-apiserver.
type cluster struct {
	dir       string
	server    string // https://127.0.0.1:PORT
	port      int
	admin     *client
	processes []*process
}

// newCluster makes keys and chooses a port; start starts it.
func newCluster(dir string) (*cluster, error) {
	if err := writeKeys(dir); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, port: port, server: fmt.Sprintf("https://127.0.0.1:%d", port)}
	c.admin, err = newAdmin(c)
	return c, err
}

func (c *cluster) file(name string) string { return filepath.Join(c.dir, name) }

// start returns before the servers are ready.
func (c *cluster) start() error {
	etcdPort, err := freePort()
	if err != nil {
		return err
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", etcdPort)
	if err := c.run("DETOUR_ETCD",
		"--data-dir="+c.file("etcd"),
		"--listen-client-urls="+etcd,
		"--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:0", // it has no peers
	); err != nil {
		return err
	}
	policy, err := filepath.Abs("../../testdata/api/audit-policy.yaml")
	if err != nil {
		return err
	}
	return c.run("DETOUR_KUBE_APISERVER",
		"--etcd-servers="+etcd,
		"--bind-address=127.0.0.1",
		fmt.Sprintf("--secure-port=%d", c.port),
		"--endpoint-reconciler-type=none", // a loopback address is no endpoint
		"--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=Node,RBAC",
		"--client-ca-file="+c.file("ca.crt"),
		"--tls-cert-file="+c.file("server.crt"),
		"--tls-private-key-file="+c.file("server.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+c.file("serviceaccount.key"),
		"--service-account-signing-key-file="+c.file("serviceaccount.key"),
		"--audit-policy-file="+policy,
		"--audit-log-path="+c.file("audit.log"),
		"--audit-log-mode=blocking", // a request is in the log before it is served
		"--allow-privileged",
		// beta and off in 1.34
		"--feature-gates=MutatingAdmissionPolicy=true",
		"--runtime-config=admissionregistration.k8s.io/v1beta1=true",
	)
}

// run starts the program whose path is in the environment.
func (c *cluster) run(variable string, args ...string) error {
	program := os.Getenv(variable)
	if program == "" {
		return fmt.Errorf("%s is not set: run scripts/test-api.sh (make test-api)", variable)
	}
	p, err := startProcess(c.dir, program, args...)
	if err != nil {
		return err
	}
	c.processes = append(c.processes, p)
	return nil
}

func (c *cluster) stop() {
	for _, p := range c.processes {
		p.stop()
	}
}

func (c *cluster) waitUntilReady() error {
	deadline := time.Now().Add(startTime)
	for {
		for _, p := range c.processes {
			select {
			case <-p.ended:
				return fmt.Errorf("%s has ended; %s", p.name, p.tail())
			default:
			}
		}
		_, err := c.admin.expect(http.MethodGet, "/readyz?verbose", nil, http.StatusOK)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the API server is not ready after %s: %w; %s", startTime, err, c.processes[len(c.processes)-1].tail())
		}
		time.Sleep(pollTime)
	}
}

// waitUntilAllowed waits until the token may get every path.
func (c *cluster) waitUntilAllowed(token string, paths ...string) error {
	as := c.as(token)
	for _, path := range paths {
		if err := as.waitFor(path, http.StatusOK, http.StatusNotFound); err != nil {
			return err
		}
	}
	return nil
}

// freePort returns a port of loopback on which nobody listens.
func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
