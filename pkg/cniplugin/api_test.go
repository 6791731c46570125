package cniplugin_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/rules"
)

const (
	podURL    = "/api/v1/namespaces/shop/pods/web"
	configURL = "/apis/config.openservicemesh.io/v1alpha2/namespaces/osm-system/meshconfigs/osm-mesh-config"
	token     = "eyJhbGciOiJSUzI1NiJ9.dGhlLXRva2Vu.c2lnbmF0dXJl"
)

// apiServer speaks the API server's wire format over TLS. handlers stand in for the answer to a path.
func apiServer(t testing.TB, a *attachment, handlers map[string]http.HandlerFunc) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch h := handlers[r.URL.Path]; {
		case h != nil:
			h(w, r)
		case r.Header.Get("Authorization") != "Bearer "+token:
			answer(401, "Unauthorized", "Unauthorized")(w, r)
		case r.URL.Path == podURL:
			object(meshedPod())(w, r)
		case r.URL.Path == configURL:
			object(meshConfig)(w, r)
		case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/"):
			answer(404, "NotFound", "not found")(w, r)
		default:
			http.NotFound(w, r)
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	delete(a.conf, "manifests")
	a.conf["kubeconfig"] = a.path("kubeconfig")
	a.conf["timeout"] = "5s"
	a.file("token", token)
	a.file("kubeconfig", kubeconfig(s.URL, ca, "tokenFile: token"))
}

func kubeconfig(url string, ca []byte, credential string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "%s", certificate-authority-data: "%s"}}],
users: [{name: u, user: {%s}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`, url, base64.StdEncoding.EncodeToString(ca), credential)
}

func object(manifest string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		data, err := yaml.YAMLToJSON([]byte(manifest))
		if err != nil {
			panic(err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(data)
	}
}

func answer(code int, reason, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
			"message": message, "reason": reason, "details": map[string]any{"name": path.Base(r.URL.Path)}, "code": code})
	}
}

// once answers the first request with h and lets the others through to then.
func once(h, then http.HandlerFunc) http.HandlerFunc {
	var asked atomic.Bool
	return func(w http.ResponseWriter, r *http.Request) {
		if asked.CompareAndSwap(false, true) {
			h(w, r)
			return
		}
		then(w, r)
	}
}

func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte(`{"kind":"Pod"`))
	panic(http.ErrAbortHandler)
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestAddThroughTheAPIServerPrograms(t *testing.T) {
	for name, handlers := range map[string]map[string]http.HandlerFunc{
		"that answers":                      {},
		"that is busy at first":             {podURL: once(answer(429, "TooManyRequests", "slow down"), object(meshedPod()))},
		"that fails at first":               {podURL: once(answer(500, "InternalError", "no leader"), object(meshedPod()))},
		"that cuts the connection at first": {podURL: once(cut, object(meshedPod()))},
		"that has no MeshConfig":            {configURL: answer(404, "NotFound", "not found")},
		"that serves no such group":         {configURL: http.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t)
			apiServer(t, a, handlers)
			a.must("STATUS")
			a.must("ADD")
			if len(a.rules(rules.IPv4)) == 0 || len(a.rules(rules.IPv6)) == 0 {
				t.Error("nothing was programmed")
			}
			a.must("CHECK")
			a.must("DEL")
			a.untouched()
		})
	}
}

func TestAddFailsClosedWhenTheAPIServer(t *testing.T) {
	for name, c := range map[string]struct {
		handlers map[string]http.HandlerFunc
		timeout  string
		code     uint
		want     []string
	}{
		"does not know the token":     {map[string]http.HandlerFunc{podURL: answer(401, "Unauthorized", "Unauthorized")}, "", 999, []string{"get pods shop/web: 401 Unauthorized"}},
		"forbids the pod":             {map[string]http.HandlerFunc{podURL: answer(403, "Forbidden", "may not get pods")}, "", 999, []string{"get pods shop/web: 403 Forbidden", "may not get pods"}},
		"forbids the MeshConfig":      {map[string]http.HandlerFunc{configURL: answer(403, "Forbidden", "may not get meshconfigs")}, "", 999, []string{"get meshconfigs.config.openservicemesh.io osm-system/osm-mesh-config: 403 Forbidden"}},
		"does not have the pod":       {map[string]http.HandlerFunc{podURL: answer(404, "NotFound", `pods "web" not found`)}, "", 999, []string{"get pods shop/web", "not found"}},
		"has another pod of the name": {map[string]http.HandlerFunc{podURL: object(strings.Replace(meshedPod(), "uid-1", "uid-9", 1))}, "", 100, []string{"uid-9"}},
		"is always busy":              {map[string]http.HandlerFunc{podURL: answer(429, "TooManyRequests", "slow down")}, "300ms", 11, []string{"429 Too Many Requests"}},
		"always fails":                {map[string]http.HandlerFunc{podURL: answer(500, "InternalError", "no leader")}, "300ms", 11, []string{"500 Internal Server Error", "no leader"}},
		"hangs":                       {map[string]http.HandlerFunc{podURL: hang}, "300ms", 11, []string{"get pods shop/web"}},
		"always cuts the connection":  {map[string]http.HandlerFunc{podURL: cut}, "300ms", 11, []string{"get pods shop/web"}},
		"answers something else":      {map[string]http.HandlerFunc{podURL: object(meshConfig)}, "", 100, []string{`got "MeshConfig"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t)
			apiServer(t, a, c.handlers)
			if c.timeout != "" {
				a.conf["timeout"] = c.timeout
			}
			a.fails("ADD", c.code, c.want...)
			a.untouched()
		})
	}
}

func TestStatusSaysWhyAnAddCouldNotBeServed(t *testing.T) {
	for name, c := range map[string]struct {
		handlers map[string]http.HandlerFunc
		want     string
	}{
		"pods are forbidden":             {map[string]http.HandlerFunc{"/api/v1/namespaces/osm-system/pods/detour-status": answer(403, "Forbidden", "may not get pods")}, "403 Forbidden"},
		"the MeshConfig is forbidden":    {map[string]http.HandlerFunc{configURL: answer(403, "Forbidden", "may not get meshconfigs")}, "meshconfigs.config.openservicemesh.io"},
		"the API server does not answer": {map[string]http.HandlerFunc{"/api/v1/namespaces/osm-system/pods/detour-status": hang}, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t)
			apiServer(t, a, c.handlers)
			a.conf["timeout"] = "3s"
			a.fails("STATUS", 50, "detour can't serve an ADD", c.want)
		})
	}
}

// Whatever is wrong with the mesh's configuration, a pod without its sidecar starts.
func TestAPodThatIsNotMeshedNeedsNoConfiguration(t *testing.T) {
	for name, config := range map[string]http.HandlerFunc{"it is forbidden": answer(403, "Forbidden", "may not get meshconfigs"), "it hangs": hang} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t)
			apiServer(t, a, map[string]http.HandlerFunc{podURL: object(strings.Replace(meshedPod(), "name: envoy", "name: other", 1)), configURL: config})
			a.conf["timeout"] = "60s"
			a.must("ADD")
			if got := a.save(); strings.Contains(got, "PROXY") {
				t.Errorf("the pod has rules:\n%s", got)
			}
		})
	}
}

func TestTheMeshsConfigurationIsAskedForWhereTheMeshKeepsIt(t *testing.T) {
	for mesh, c := range map[string]struct{ url, pod, config, want string }{
		"istio": {"/api/v1/namespaces/istio-system/configmaps/istio", istioPod(),
			`{kind: ConfigMap, apiVersion: v1, metadata: {namespace: istio-system, name: istio}, data: {mesh: "proxyListenPort: 16001"}}`,
			"-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 16001"},
		"fsm": {"/apis/config.flomesh.io/v1alpha3/namespaces/fsm-system/meshconfigs/fsm-mesh-config", strings.Replace(meshedPod(), "name: envoy", "name: sidecar", 1),
			`{kind: MeshConfig, apiVersion: config.flomesh.io/v1alpha3, metadata: {namespace: fsm-system, name: fsm-mesh-config}, spec: {traffic: {outboundPortExclusionList: [6379]}}}`,
			"-A FSM_PROXY_OUTBOUND -p tcp -m multiport --dports 6379 -j RETURN"},
		"osm-edge": {configURL, strings.Replace(meshedPod(), "name: envoy", "name: sidecar", 1), meshConfig,
			"-A PROXY_OUTPUT -p tcp -m multiport --dports 6379 -j RETURN"},
	} {
		t.Run(mesh, func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t)
			var asked atomic.Int32
			counted := func(h http.HandlerFunc) http.HandlerFunc {
				return func(w http.ResponseWriter, r *http.Request) {
					asked.Add(1)
					h(w, r)
				}
			}
			apiServer(t, a, map[string]http.HandlerFunc{podURL: counted(object(c.pod)), c.url: counted(object(c.config))})
			a.conf["mesh"] = mesh
			a.must("ADD")
			if !strings.Contains(a.save(), c.want) {
				t.Errorf("got\n%s, which lacks %s", a.save(), c.want)
			}
			if n := asked.Load(); n != 2 {
				t.Errorf("%d requests, want 2", n)
			}
			a.must("CHECK")
		})
	}
}

func TestAPodOfARevisionIsProgrammedByItsConfiguration(t *testing.T) {
	t.Parallel()
	config := func(name string, port int) string {
		return fmt.Sprintf("{kind: ConfigMap, apiVersion: v1, metadata: {namespace: istio-system, name: %s}, data: {mesh: 'proxyListenPort: %d'}}", name, port)
	}
	pod := istioPod(`istio.io/rev: canary`)
	const usualURL, canaryURL = "/api/v1/namespaces/istio-system/configmaps/istio", "/api/v1/namespaces/istio-system/configmaps/istio-canary"
	sources := map[string]func(*attachment){
		"manifests": func(a *attachment) {
			a.file("manifests.yaml", strings.Join([]string{pod, config("istio", 16001), config("istio-canary", 16002)}, "\n---\n"))
		},
		"the API server": func(a *attachment) {
			apiServer(t, a, map[string]http.HandlerFunc{podURL: object(pod), usualURL: object(config("istio", 16001)), canaryURL: object(config("istio-canary", 16002))})
		},
	}
	for name, from := range sources {
		a := newAttachment(t)
		from(a)
		a.conf["mesh"] = "istio"
		a.must("ADD")
		if want := "-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 16002"; !strings.Contains(a.save(), want) {
			t.Errorf("%s: got\n%s, which lacks %s", name, a.save(), want)
		}
		a.must("CHECK")
		a.conf["meshConfig"] = map[string]any{"name": "istio-mine"} // holds for all pods
		a.must("ADD")
		if line := a.logged()[1]; !strings.Contains(fmt.Sprint(line["warnings"]), "ConfigMap istio-system/istio-mine") {
			t.Errorf("%s: logged %v", name, line)
		}
	}

	a := newAttachment(t)
	apiServer(t, a, map[string]http.HandlerFunc{podURL: object(pod), usualURL: object(config("istio", 16001)), canaryURL: answer(404, "NotFound", "not found")})
	a.conf["mesh"] = "istio"
	a.must("ADD")
	if line := a.logged()[0]; !strings.Contains(fmt.Sprint(line["warnings"]), "ConfigMap istio-system/istio-canary does not exist: the mesh's defaults hold") {
		t.Errorf("logged %v", line)
	}
}
