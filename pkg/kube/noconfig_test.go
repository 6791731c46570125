package kube

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
)

// A mesh without a configuration object has no configuration, and nobody is asked for one.
func TestAMeshWithoutAConfigurationObject(t *testing.T) {
	t.Parallel()
	r := Request{ID: request.ID}
	const probe = "/api/v1/namespaces/default/pods/" + probePod
	s := newServer(t, true, routes{podPath: answer(200, podJSON), probe: answer(404, strings.ReplaceAll(noPod, "web", probePod))})
	api := newTestAPI(t, kubeconfig(t, s.URL, s.ca()), noSleep)
	manifests, err := NewManifests(write(t, t.TempDir(), "pod.json", podJSON))
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]interface {
		Lookup(context.Context, Request) (Objects, error)
		Ready(context.Context, mesh.ConfigRef) error
	}{"API server": api, "manifests": manifests} {
		got, err := from.Lookup(within(t, 10*time.Second), r)
		if err != nil || len(got.Pod) == 0 || got.Config != nil || got.ConfigAbsent != "" {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
		if err := from.Ready(within(t, 10*time.Second), r.Config); err != nil {
			t.Errorf("%s: not ready: %v", name, err)
		}
	}
	if asked := s.asked(); !slices.Equal(asked, []string{probe, podPath}) {
		t.Errorf("asked for %q", asked)
	}
}
