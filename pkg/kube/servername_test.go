package kube

import (
	"crypto/tls"
	"testing"
	"time"
)

// An API server behind an address that its certificate does not have is known by the name in the kubeconfig.
func TestTheServerIsAskedByTheNameInTheKubeconfig(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	s := unstarted(t, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
	s.TLS = &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		asked <- hello.ServerName
		return nil, nil
	}}
	s.StartTLS()
	lookup := func(name string) error {
		path := kubeconfig(t, s.URL+`", tls-server-name: "`+name, s.ca())
		_, err := newTestAPI(t, path, noSleep).Lookup(within(t, time.Minute), request)
		return err
	}
	if err := lookup("example.com"); err != nil { // which httptest's certificate has
		t.Error(err)
	}
	if got := <-asked; got != "example.com" {
		t.Errorf("asked for %q", got)
	}
	wantError(t, lookup("example.org"), "no trusted connection", "example.org")
}
