//go:build kubeapi

package apitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// fault answers a request in place of the API server, which is next.
type fault func(w http.ResponseWriter, r *http.Request, next http.Handler)

// faultyAPI is the API server as a node reaches it: a proxy on the node's loopback that answers as its fault says. It is without a
// fault at first.
type faultyAPI struct {
	server string // https://127.0.0.1:PORT, for the node only

	mu          sync.Mutex
	fault       fault
	certificate *tls.Certificate
	down        bool // connections end at once
	conns       map[net.Conn]struct{}
	asked       map[string]int // by path
}

func newFaultyAPI(t *testing.T, node *nettest.Namespace) *faultyAPI {
	t.Helper()
	f := &faultyAPI{conns: map[net.Conn]struct{}{}, asked: map[string]int{}}
	f.certify(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	var l net.Listener
	err := node.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f.server = "https://" + l.Addr().String()
	s := &http.Server{
		Handler:   f.handler(),
		ConnState: f.track,
		ErrorLog:  log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.certificate, nil
		}},
	}
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })
	return f
}

// handler passes requests on to the API server, by way of the fault.
func (f *faultyAPI) handler() http.Handler {
	real, err := url.Parse(kubernetes.server)
	if err != nil {
		panic(err)
	}
	next := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(real) },
		Transport:     kubernetes.as("").http.Transport,
		FlushInterval: -1, // a watch's events go at once
		ErrorLog:      log.New(io.Discard, "", 0),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.asked[r.URL.Path]++
		broken := f.fault
		f.mu.Unlock()
		if broken == nil {
			next.ServeHTTP(w, r)
			return
		}
		broken(w, r, next)
	})
}

func (f *faultyAPI) track(c net.Conn, state http.ConnState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case state == http.StateClosed:
		delete(f.conns, c)
	case f.down:
		c.Close()
	default:
		f.conns[c] = struct{}{}
	}
}

// set makes the fault that of all requests from now on; nil mends it.
func (f *faultyAPI) set(broken fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = broken
}

// setDown cuts all connections, and every new one.
func (f *faultyAPI) setDown(down bool) {
	f.mu.Lock()
	f.down = down
	f.mu.Unlock()
	if down {
		f.cut()
	}
}

// cut closes all connections.
func (f *faultyAPI) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		c.Close()
	}
}

// clients are the ports at the other ends of the connections.
func (f *faultyAPI) clients() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ports []string
	for c := range f.conns {
		_, port, _ := net.SplitHostPort(c.RemoteAddr().String())
		ports = append(ports, port)
	}
	return ports
}

// port is the one that the node connects to.
func (f *faultyAPI) port() string { return f.server[strings.LastIndexByte(f.server, ':')+1:] }

// count is how often the path was asked for.
func (f *faultyAPI) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[path]
}

// certify gives the server a certificate of the cluster's authority, valid for that time.
func (f *faultyAPI) certify(t *testing.T, from, until time.Time) {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(kubernetes.file("ca.crt"), kubernetes.file("ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: from, NotAfter: until, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.certificate = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
