package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"strings"
	"testing"
)

// bigServer is an API server with many long pods on node n1. After the list it has some of them once more, changed, and then
// lastPod, as events. None of them can be asked for by its name.
type bigServer struct {
	*httptest.Server
	pods, env int
	streams   bool // lists as events, as since 1.32
}

const lastPod = "last"

// unlisted is what the names of pods begin with that can be asked for, and are on no list yet.
const unlisted = "unlisted-"

func bigPodName(i int) string { return fmt.Sprintf("big-%d", i) }

func newBigServer(t *testing.T, pods, env int, streams bool) *bigServer {
	s := &bigServer{pods: pods, env: env, streams: streams}
	s.Server = httptest.NewUnstartedServer(s)
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *bigServer) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func (s *bigServer) host() string { u, _ := url.Parse(s.URL); return u.Hostname() }
func (s *bigServer) port() string { u, _ := url.Parse(s.URL); return u.Port() }

// podKind is what a pod's JSON begins with, but not that of a list's items.
const podKind = `"kind":"Pod","apiVersion":"v1",`

// writePod writes the JSON of a pod with an environment of env characters. One in fifty has characters of which the API
// server makes six bytes each.
func (s *bigServer) writePod(w io.Writer, kind, name string, env, version int) {
	character := "x"
	if name == bigPodName(49) || name == bigPodName(99) {
		character = `\u003c`
	}
	fmt.Fprintf(w, `{%s"metadata":{"namespace":"shop","name":"%s","uid":"uid-%[2]s","resourceVersion":"%[3]d"},"spec":{"nodeName":"n1","containers":[`, kind, name, version)
	fmt.Fprintf(w, `{"name":"app","env":[{"name":"LONG","value":"%s"}]},{"name":"envoy"}]},"status":{"phase":"Running"}}`, strings.Repeat(character, env))
}

const (
	group  = "/apis/config.openservicemesh.io"
	config = `{"kind":"MeshConfig","apiVersion":"config.openservicemesh.io/v1alpha2","metadata":{"namespace":"osm-system","name":"osm-mesh-config","resourceVersion":"1"}}`
)

func (s *bigServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	watch := r.URL.Query().Get("watch") == "true"
	pods := strings.HasSuffix(r.URL.Path, "/pods")
	switch {
	case r.URL.Path == group:
		fmt.Fprint(w, `{"kind":"APIGroup","versions":[{"version":"v1alpha2"}]}`)
	case r.URL.Path == group+"/v1alpha2":
		fmt.Fprint(w, `{"kind":"APIResourceList","resources":[{"name":"meshconfigs"}]}`)
	case strings.Contains(r.URL.Path, "/pods/"+unlisted):
		s.writePod(w, podKind, path.Base(r.URL.Path), 1_400_000, 1)
	case !pods && !strings.HasSuffix(r.URL.Path, "/meshconfigs"):
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":404,"reason":"NotFound","message":"no","details":{"name":"x"}}`)
	case !s.streams && r.URL.Query().Get("sendInitialEvents") == "true":
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":422,"reason":"Invalid","message":"sendInitialEvents"}`)
	case watch:
		s.watch(w, r, pods)
	case pods:
		s.list(w)
	default:
		fmt.Fprintf(w, `{"kind":"MeshConfigList","apiVersion":"config.openservicemesh.io/v1alpha2","metadata":{"resourceVersion":"1"},"items":[%s]}`, config)
	}
}

func (s *bigServer) list(w http.ResponseWriter) {
	fmt.Fprint(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[`)
	for i := range s.pods {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		s.writePod(w, "", bigPodName(i), s.env, 1)
	}
	fmt.Fprint(w, `]}`)
}

func (s *bigServer) watch(w http.ResponseWriter, r *http.Request, pods bool) {
	event := func(kind string, write func()) {
		fmt.Fprintf(w, `{"type":"%s","object":`, kind)
		write()
		fmt.Fprint(w, "}\n")
		w.(http.Flusher).Flush()
	}
	some := func(kind string, most, version int) {
		for i := 0; pods && i < most; i++ {
			event(kind, func() { s.writePod(w, podKind, bigPodName(i), s.env, version) })
		}
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		some("ADDED", s.pods, 1)
		kind, version := "Pod", "v1"
		if !pods {
			kind, version = "MeshConfig", "config.openservicemesh.io/v1alpha2"
			event("ADDED", func() { fmt.Fprint(w, config) })
		}
		event("BOOKMARK", func() {
			fmt.Fprintf(w, `{"kind":"%s","apiVersion":"%s","metadata":{"resourceVersion":"1","annotations":{"k8s.io/initial-events-end":"true"}}}`, kind, version)
		})
	}
	some("MODIFIED", s.pods/2, 2)
	if pods {
		event("ADDED", func() { s.writePod(w, podKind, lastPod, 0, 3) })
	}
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}
