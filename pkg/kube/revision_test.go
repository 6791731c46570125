package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

const (
	revisionPod   = `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web","namespace":"shop","annotations":{"istio.io/rev":"canary"},"labels":{"istio.io/rev":"prod"}},"spec":{"containers":[{"name":"app"},{"name":"istio-proxy"}]}}`
	usualPod      = `{"kind":"Pod","apiVersion":"v1","spec":{"initContainers":[{"name":"istio-proxy"}]}}`
	usualConfig   = "/api/v1/namespaces/istio-system/configmaps/istio"
	canaryConfig  = "/api/v1/namespaces/istio-system/configmaps/istio-canary"
	usualJSON     = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"istio"}}`
	canaryJSON    = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"istio-canary"}}`
	noConfigMap   = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps not found","reason":"NotFound","details":{"name":"istio","kind":"configmaps"},"code":404}`
	noConfigRight = `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"configmaps is forbidden","reason":"Forbidden","details":{"name":"istio","kind":"configmaps"},"code":403}`
)

func istioRequest(t *testing.T) Request {
	t.Helper()
	d, ok := mesh.Find("istio")
	if !ok {
		t.Fatal("no dialect istio")
	}
	return NewRequest(d, pod.ID{Namespace: "shop", Name: "web"})
}

// late answers when any other request has long been answered.
func late(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(300 * time.Millisecond)
		h(w, r)
	}
}

func TestAPodOfARevisionGetsItsConfiguration(t *testing.T) {
	t.Parallel()
	pod := answer(200, revisionPod)
	tests := []struct {
		name   string
		routes routes
		config string // "" if absent
		absent string
		asked  []string
	}{
		{"the revision has one", routes{podPath: pod, usualConfig: answer(200, usualJSON), canaryConfig: answer(200, canaryJSON)},
			canaryJSON, "", []string{podPath, canaryConfig}},
		{"the revision has none", routes{podPath: pod, usualConfig: answer(200, usualJSON), canaryConfig: answer(404, noConfigMap)},
			"", "ConfigMap istio-system/istio-canary does not exist", []string{podPath, canaryConfig}},
		{"only the revision has one", routes{podPath: pod, usualConfig: answer(404, noConfigMap), canaryConfig: answer(200, canaryJSON)},
			canaryJSON, "", []string{podPath, canaryConfig}},
		{"the usual one is not to be had", routes{podPath: late(pod), usualConfig: answer(403, noConfigRight), canaryConfig: answer(200, canaryJSON)},
			canaryJSON, "", []string{podPath, canaryConfig}},
		{"the usual one takes long", routes{podPath: pod, usualConfig: hang, canaryConfig: answer(200, canaryJSON)},
			canaryJSON, "", []string{podPath, canaryConfig}},
		{"the pod has no revision", routes{podPath: answer(200, usualPod), usualConfig: answer(200, usualJSON)},
			usualJSON, "", []string{podPath}},
		{"what is no pod others find out", routes{podPath: answer(200, `{"metadata": 1}`), usualConfig: answer(200, usualJSON)},
			usualJSON, "", []string{podPath}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, tt.routes)
			got, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, time.Minute), istioRequest(t))
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Config) != tt.config || got.ConfigAbsent != tt.absent {
				t.Errorf("got %s, %q", got.Config, got.ConfigAbsent)
			}
			// Whether the usual one is asked for is a matter of time where nobody waits for it.
			asked := slices.DeleteFunc(s.asked(), func(path string) bool { return path == usualConfig })
			if want := slices.Sorted(slices.Values(tt.asked)); !slices.Equal(asked, want) {
				t.Errorf("asked for %q, want %q", asked, want)
			}
		})
	}
}

// Whatever is wrong with the mesh and its configuration, other pods start.
func TestAPodWithoutTheSidecarNeedsNoConfiguration(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]http.HandlerFunc{
		"forbidden": answer(403, noConfigRight), "failing": answer(500, "no"), "hanging": hang, "there": answer(200, usualJSON),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, routes{podPath: late(answer(200, podJSON)), usualConfig: config})
			began := time.Now()
			got, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, time.Minute), istioRequest(t))
			if err != nil || string(got.Pod) != podJSON || got.Config != nil || got.ConfigAbsent != "" {
				t.Errorf("got %+v, %v", got, err)
			}
			if took := time.Since(began); took > 40*time.Second {
				t.Errorf("it took %s, as if it waited for the configuration", took)
			}
		})
	}
}

func TestAConfigurationThatCanNotBeHadFailsTheLookupOfItsPod(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		routes routes
		want   string
	}{
		"the revision's": {routes{podPath: answer(200, revisionPod), usualConfig: answer(200, usualJSON), canaryConfig: answer(403, noConfigRight)},
			"get configmaps istio-system/istio-canary: 403 Forbidden"},
		"the usual one": {routes{podPath: answer(200, usualPod), usualConfig: answer(403, noConfigRight)},
			"get configmaps istio-system/istio: 403 Forbidden"},
		"any, without the pod": {routes{podPath: answer(403, forbidden), usualConfig: hang}, "get pods shop/web: 403 Forbidden"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true, c.routes)
			began := time.Now()
			_, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep).Lookup(within(t, time.Minute), istioRequest(t))
			wantError(t, err, c.want)
			if took := time.Since(began); took > 40*time.Second {
				t.Errorf("it took %s, as if it waited for the other request", took)
			}
		})
	}
}

// A pod without a revision waits for two requests side by side, as it does in a mesh without revisions.
func TestWithoutARevisionBothRequestsAreInFlightAtOnce(t *testing.T) {
	t.Parallel()
	together := meeting(2)
	s := newServer(t, true, routes{podPath: together(answer(200, usualPod)), usualConfig: together(answer(200, usualJSON))})
	if _, err := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), sleep).Lookup(within(t, time.Minute), istioRequest(t)); err != nil {
		t.Fatal(err)
	}
}

func TestARevisionInManifests(t *testing.T) {
	t.Parallel()
	config := func(name string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {namespace: istio-system, name: %s}}", name)
	}
	pod := func(name, revision string) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %s, annotations: {istio.io/rev: %s}}, spec: {containers: [{name: istio-proxy}]}}", name, revision)
	}
	path := write(t, t.TempDir(), "all.yaml", strings.Join([]string{config("istio"), config("istio-canary"), pod("web", "canary"), pod("usual", "default"), pod("lost", "gone")}, "\n---\n"))
	m, err := NewManifests(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"web": `"name":"istio-canary"`, "usual": `"name":"istio"`, "lost": "ConfigMap istio-system/istio-gone is not in " + path} {
		r := istioRequest(t)
		r.Name = name
		got, err := m.Lookup(t.Context(), r)
		if err != nil || !strings.Contains(string(got.Config)+got.ConfigAbsent, want) {
			t.Errorf("%s: got %s %s, %v; want %s", name, got.Config, got.ConfigAbsent, err, want)
		}
	}
}

// Only where pods may have a configuration of their own is it worth looking for.
func TestAMeshWithoutRevisionsHasOneConfiguration(t *testing.T) {
	t.Parallel()
	for _, name := range mesh.Names() {
		d, _ := mesh.Find(name)
		if r := NewRequest(d, pod.ID{Namespace: "shop", Name: "web", UID: "u"}); (r.ConfigFor != nil) != (name == "istio") || r.Config.Name != d.Config.Name || r.UID != "u" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
