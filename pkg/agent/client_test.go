package agent

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/pod"
)

func TestInAPodLiveLookupsUseItsServiceAccount(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	seen := make(chan string, 10)
	s.Refuse["GET "+agenttest.PodPath("shop", "a")] = func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("Authorization")
		s.Get(w, r)
	}
	secure := httptest.NewTLSServer(s) // no credential goes over plain HTTP
	t.Cleanup(secure.Close)
	dir := t.TempDir()
	const bearer = "eyJhbGciOiJSUzI1NiJ9.b2YtdGhlLXBvZA.c2lnbmF0dXJl"
	token, ca := filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	if err := errors.Join(os.WriteFile(token, []byte(bearer), 0o600), os.WriteFile(ca, certificate, 0o600)); err != nil {
		t.Fatal(err)
	}
	api, err := cache.NewLive(&rest.Config{Host: secure.URL, BearerTokenFile: token, TLSClientConfig: rest.TLSClientConfig{CAFile: ca}}, "the ServiceAccount")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := api.Lookup(t.Context(), kube.Request{ID: pod.ID{Namespace: "shop", Name: "a"}, Config: osm(t).Config})
	if err != nil || len(objects.Pod) == 0 || len(objects.Config) == 0 {
		t.Fatalf("%v, %s", err, objects.Pod)
	}
	if got := <-seen; got != "Bearer "+bearer {
		t.Errorf("asked as %q", got)
	}
}

// A write that is told to come back later must not wait in the client.
func TestAWriteIsTriedOnce(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Refuse["POST /x"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "5")
		agenttest.Refusal(429, "TooManyRequests")(w, r)
	}
	a := newTestAgent(t, s, nil)
	began := time.Now()
	err := a.client.Create(t.Context(), "/x", agenttest.Fields{})
	if err == nil || !strings.Contains(err.Error(), "POST /x: ") || time.Since(began) > 3*time.Second || s.Count("POST /x") != 1 {
		t.Errorf("%v after %s and %d requests", err, time.Since(began), s.Count("POST /x"))
	}
}
