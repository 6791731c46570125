package kube

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

const (
	podPath   = "/api/v1/namespaces/shop/pods/web"
	newConfig = "/apis/config.openservicemesh.io/v1alpha2/namespaces/osm-system/meshconfigs/osm-mesh-config"
	oldConfig = "/apis/config.openservicemesh.io/v1alpha1/namespaces/osm-system/meshconfigs/osm-mesh-config"

	podJSON    = `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"shop"}}`
	configJSON = `{"kind":"MeshConfig","apiVersion":"config.openservicemesh.io/v1alpha2","metadata":{"name":"osm-mesh-config"}}`
	token      = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl"
)

var request = Request{
	ID: pod.ID{Namespace: "shop", Name: "web"},
	Config: mesh.ConfigRef{
		Group: "config.openservicemesh.io", Versions: []string{"v1alpha2", "v1alpha1"}, Resource: "meshconfigs",
		Kind: "MeshConfig", Namespace: "osm-system", Name: "osm-mesh-config",
	},
}

// Status objects as an API server of 1.34 writes them.
const (
	unauthorized = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`
	forbidden    = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web\" is forbidden: User \"system:serviceaccount:detour:plugin\" cannot get resource \"pods\" in API group \"\" in the namespace \"shop\"","reason":"Forbidden","details":{"name":"web","kind":"pods"},"code":403}`
	noPod        = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"web\" not found","reason":"NotFound","details":{"name":"web","kind":"pods"},"code":404}`
	noConfig     = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"meshconfigs.config.openservicemesh.io \"osm-mesh-config\" not found","reason":"NotFound","details":{"name":"osm-mesh-config","group":"config.openservicemesh.io","kind":"meshconfigs"},"code":404}`
	noConfigAuth = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"meshconfigs.config.openservicemesh.io \"osm-mesh-config\" is forbidden:\n no","reason":"Forbidden","details":{"name":"osm-mesh-config","group":"config.openservicemesh.io","kind":"meshconfigs"},"code":403}`
	noLeader     = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"etcd leader changed","reason":"ServiceUnavailable","code":503}`
	tooMany      = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too many requests, please try again later","reason":"TooManyRequests","details":{"retryAfterSeconds":7},"code":429}`
)

// server is an API server over TLS that counts connections and requests.
type server struct {
	*httptest.Server
	mu       sync.Mutex
	conns    []net.Conn
	requests []string
}

// routes are the handlers by path; any other path is a 404 as for a group that is not served.
type routes map[string]http.HandlerFunc

func newServer(t testing.TB, http2 bool, r routes) *server {
	s := unstarted(t, http2, r)
	s.StartTLS()
	return s
}

func unstarted(t testing.TB, http2 bool, r routes) *server {
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, req.URL.EscapedPath())
		s.mu.Unlock()
		if handler, ok := r[req.URL.EscapedPath()]; ok {
			handler(w, req)
			return
		}
		http.NotFound(w, req)
	}))
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
		}
	}
	t.Cleanup(s.Close)
	return s
}

func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *server) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, p := range s.requests {
		if p == path {
			n++
		}
	}
	return n
}

// asked returns the sorted paths that were requested, each one once.
func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(s.requests)))
}

// cut closes all connections below TLS, without a farewell.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if tls, ok := c.(interface{ NetConn() net.Conn }); ok {
			c = tls.NetConn()
		}
		c.Close()
	}
}

func (s *server) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

// kubeconfig writes a kubeconfig with its CA and token in files beside it, by relative paths.
func kubeconfig(t testing.TB, url string, ca []byte) string {
	dir := t.TempDir()
	write(t, dir, "ca.crt", string(ca))
	write(t, dir, "token", token+"\n")
	return write(t, dir, "kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "%s", certificate-authority: ca.crt}}]
users: [{name: plugin, user: {tokenFile: token}}]
contexts: [{name: plugin, context: {cluster: here, user: plugin}}]
current-context: plugin
`, url))
}

func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newTestAPI returns a client whose pauses between attempts are as given.
func newTestAPI(t testing.TB, kubeconfig string, sleep func(context.Context, time.Duration)) *API {
	t.Helper()
	api, err := newAPI(kubeconfig, sleep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.client.CloseIdleConnections)
	return api
}

func noSleep(context.Context, time.Duration) {}

func answer(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		io.WriteString(w, body)
	}
}

// first answers with one handler after the other, and with the last one from then on.
func first(handlers ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	next := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := handlers[min(next, len(handlers)-1)]
		next++
		mu.Unlock()
		h(w, r)
	}
}

// hang takes the request and answers nothing until the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// meeting returns a wrapper for handlers that answer only when n requests are there at once.
func meeting(n int) func(http.HandlerFunc) http.HandlerFunc {
	var there sync.WaitGroup
	there.Add(n)
	return func(h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			there.Done()
			there.Wait()
			h(w, r)
		}
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// wantError fails unless err says every one of the words, and never the token.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q lacks %q", err, w)
		}
	}
	if strings.Contains(err.Error(), token) || strings.ContainsAny(err.Error(), "\n") {
		t.Errorf("error %q shows the token or has several lines", err)
	}
}
