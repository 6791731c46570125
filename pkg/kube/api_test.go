package kube

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLookupReturnsWhatTheServerHas(t *testing.T) {
	t.Parallel()
	ok := answer(200, podJSON)
	tests := []struct {
		name   string
		routes routes
		want   Objects
		asked  []string
	}{
		{
			"the newest version is served",
			routes{podPath: ok, newConfig: answer(200, configJSON)},
			Objects{Pod: []byte(podJSON), Config: []byte(configJSON)},
			[]string{podPath, newConfig},
		},
		{
			"only an older version is served",
			routes{podPath: ok, oldConfig: answer(200, configJSON)},
			Objects{Pod: []byte(podJSON), Config: []byte(configJSON)},
			[]string{podPath, oldConfig, newConfig},
		},
		{
			"a Status without an object's name means that the resource is not served",
			routes{podPath: ok, newConfig: answer(404, `{"kind":"Status","reason":"NotFound","message":"the server could not find the requested resource","details":{},"code":404}`), oldConfig: answer(200, configJSON)},
			Objects{Pod: []byte(podJSON), Config: []byte(configJSON)},
			[]string{podPath, oldConfig, newConfig},
		},
		{
			"a missing object is not looked for in older versions",
			routes{podPath: ok, newConfig: answer(404, noConfig), oldConfig: answer(200, configJSON)},
			Objects{Pod: []byte(podJSON), ConfigAbsent: "MeshConfig osm-system/osm-mesh-config does not exist"},
			[]string{podPath, newConfig},
		},
		{
			"no version is served",
			routes{podPath: ok},
			Objects{Pod: []byte(podJSON), ConfigAbsent: "the API server serves no meshconfigs.config.openservicemesh.io in v1alpha2 or v1alpha1"},
			[]string{podPath, oldConfig, newConfig},
		},
	}
	for _, tt := range tests {
		for _, http2 := range []bool{true, false} {
			t.Run(tt.name+protocol(http2), func(t *testing.T) {
				t.Parallel()
				s := newServer(t, http2, tt.routes)
				got, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), request)
				if err != nil {
					t.Fatal(err)
				}
				if string(got.Pod) != string(tt.want.Pod) || string(got.Config) != string(tt.want.Config) || got.ConfigAbsent != tt.want.ConfigAbsent {
					t.Errorf("got %s, %s, %q", got.Pod, got.Config, got.ConfigAbsent)
				}
				if (got.Config == nil) != (tt.want.Config == nil) {
					t.Errorf("Config is %#v", got.Config)
				}
				if asked := s.asked(); !slices.Equal(asked, slices.Sorted(slices.Values(tt.asked))) {
					t.Errorf("asked for %q, want %q", asked, tt.asked)
				}
				if n := s.connections(); n != 1 {
					t.Errorf("%d connections, want 1", n)
				}
			})
		}
	}
}

func protocol(http2 bool) string {
	if http2 {
		return " (HTTP/2)"
	}
	return " (HTTP/1.1)"
}

// The race between the two requests is for the connection, so it is run many times.
func TestBothRequestsAreInFlightAtOnceOverOneHTTP2Connection(t *testing.T) {
	t.Parallel()
	for range 50 {
		together := meeting(2)
		s := newServer(t, true, routes{podPath: together(overHTTP2(t, podJSON)), newConfig: together(overHTTP2(t, configJSON))})
		if _, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), request); err != nil {
			t.Fatal(err)
		}
		if n := s.connections(); n != 1 {
			t.Fatalf("%d connections, want 1", n)
		}
	}
}

func overHTTP2(t *testing.T, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("request over %s", r.Proto)
		}
		io.WriteString(w, body)
	}
}

func TestASecondConnectionWouldBeCounted(t *testing.T) {
	t.Parallel()
	together := meeting(2)
	s := newServer(t, false, routes{podPath: together(answer(200, podJSON)), newConfig: together(answer(200, configJSON))})
	api := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep)
	api.client.Transport.(*http.Transport).MaxConnsPerHost = 0
	if _, err := api.Lookup(within(t, 10*time.Second), request); err != nil {
		t.Fatal(err)
	}
	if n := s.connections(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestLookupFailsAtOnceWhenTheServerRefuses(t *testing.T) {
	t.Parallel()
	const pods, configs = "get pods shop/web: ", "get meshconfigs.config.openservicemesh.io osm-system/osm-mesh-config: "
	tests := []struct {
		name   string
		routes routes // where the pod is refused, the other request hangs: it has to be stopped
		code   int
		words  []string
	}{
		{"the credential", routes{podPath: answer(401, unauthorized), newConfig: hang}, 401,
			[]string{pods + "401 Unauthorized; the credential in ", "/kubeconfig is not accepted"}},
		{"the pod", routes{podPath: answer(403, forbidden), newConfig: hang}, 403,
			[]string{pods + `403 Forbidden: pods "web" is forbidden: User`, "; grant get on pods to the plugin's ServiceAccount (deploy/rbac.yaml)"}},
		{"the configuration", routes{podPath: answer(200, podJSON), newConfig: answer(403, noConfigAuth)}, 403,
			[]string{configs + `403 Forbidden: meshconfigs.config.openservicemesh.io "osm-mesh-config" is forbidden: no`, "; grant get on meshconfigs.config.openservicemesh.io to"}},
		{"a pod that does not exist", routes{podPath: answer(404, noPod), newConfig: hang}, 404,
			[]string{pods + `404 Not Found: pods "web" not found`}},
		{"a path that it does not know", routes{newConfig: hang}, 404,
			[]string{pods + "404 Not Found: 404 page not found; the server in ", "does not answer like a Kubernetes API server"}},
		{"a request that it calls bad", routes{podPath: answer(400, "<html>\n<body>nginx"), newConfig: hang}, 400,
			[]string{pods + "400 Bad Request: <html> <body>nginx"}},
		{"by sending us elsewhere", routes{podPath: http.RedirectHandler("https://other/", 302).ServeHTTP, newConfig: hang}, 302,
			[]string{pods + "302 Found: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, tt.routes)
			api := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep)
			_, err := api.Lookup(within(t, 30*time.Second), request)
			wantError(t, err, tt.words...)
			status, ok := errors.AsType[*StatusError](err)
			if !ok || status.Code != tt.code || status.Verb != "get" {
				t.Errorf("error is %#v", err)
			}
			if want := strings.Contains(tt.name, "does not exist"); errors.Is(err, ErrNotFound) != want {
				t.Errorf("ErrNotFound: %v, want %v", !want, want)
			}
			if max(s.count(podPath), s.count(newConfig)) > 1 {
				t.Errorf("asked again: %q", s.requests)
			}
		})
	}
}

func TestThePodsErrorComesFirst(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{podPath: answer(503, noLeader), newConfig: answer(503, noLeader)})
	_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 100*time.Millisecond), request)
	wantError(t, err, "get pods shop/web: ")
}

func TestNamesAreEscapedInThePath(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{"/api/v1/namespaces/a%2Fb/pods/c%3Fd": answer(200, podJSON), newConfig: answer(200, configJSON)})
	r := request
	r.Namespace, r.Name = "a/b", "c?d"
	if _, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), r); err != nil {
		t.Error(err)
	}
}

func TestANameThatWouldMeanAnotherPathIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", ".."} {
		s := newServer(t, true, routes{newConfig: answer(200, configJSON)})
		r := request
		r.Name = name
		_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), r)
		wantError(t, err, "is not a name")
	}
}

func TestAServerBehindAPathPrefixIsAskedThere(t *testing.T) {
	t.Parallel()
	s := newServer(t, true, routes{"/k8s/c1" + podPath: answer(200, podJSON), "/k8s/c1" + newConfig: answer(200, configJSON)})
	got, err := newTestAPI(t, kubeconfig(t, s.URL+"/k8s/c1/", s.ca()), sleep).Lookup(within(t, 10*time.Second), request)
	if err != nil || got.Config == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRequestsCarryTheTokenAndAskForJSON(t *testing.T) {
	t.Parallel()
	check := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer "+token || r.Header.Get("Accept") != "application/json" || r.UserAgent() != "detour" || r.Method != "GET" {
				t.Errorf("%s with header %v", r.Method, r.Header)
			}
			io.WriteString(w, body)
		}
	}
	s := newServer(t, true, routes{podPath: check(podJSON), newConfig: check(configJSON)})
	if _, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, 10*time.Second), request); err != nil {
		t.Error(err)
	}
}

func BenchmarkLookup(b *testing.B) {
	s := newServer(b, true, routes{podPath: answer(200, podJSON), newConfig: answer(200, configJSON)})
	path := kubeconfig(b, s.URL, s.ca())
	b.Run("first, as in the plugin", func(b *testing.B) {
		for b.Loop() {
			api, err := NewAPI(path)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := api.Lookup(b.Context(), request); err != nil {
				b.Fatal(err)
			}
			api.client.CloseIdleConnections()
		}
	})
	b.Run("further, as in the agent", func(b *testing.B) {
		api := newTestAPI(b, path, sleep)
		for b.Loop() {
			if _, err := api.Lookup(b.Context(), request); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestReadyFailsIfEitherRequestWould(t *testing.T) {
	probe := "/api/v1/namespaces/osm-system/pods/detour-status"
	for name, c := range map[string]struct {
		routes routes
		want   string // "" if ready
	}{
		"both are answered":              {routes{probe: answer(404, strings.ReplaceAll(noPod, "web", "detour-status")), newConfig: answer(200, configJSON)}, ""},
		"there is no configuration":      {routes{probe: answer(404, strings.ReplaceAll(noPod, "web", "detour-status")), newConfig: answer(404, noConfig)}, ""},
		"pods are forbidden":             {routes{probe: answer(403, forbidden), newConfig: answer(200, configJSON)}, "get pods osm-system/detour-status: 403 Forbidden"},
		"the configuration is forbidden": {routes{probe: answer(404, strings.ReplaceAll(noPod, "web", "detour-status")), newConfig: answer(403, noConfigAuth)}, "get meshconfigs.config.openservicemesh.io osm-system/osm-mesh-config: 403 Forbidden"},
		"it is no API server":            {routes{}, "404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, c.routes)
			a := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep)
			err := a.Ready(within(t, 10*time.Second), request.Config)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
}
