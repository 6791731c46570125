package cache

import (
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// detourctl asks the agent whether a sidecar is ready.
func TestWhatTheKubeletReportsIsKept(t *testing.T) {
	osm, _ := mesh.Find("osm")
	c := &Cache{Options: Options{Dialect: osm}}
	object, err := c.decode([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"namespace":"shop","name":"web","uid":"u"},
		"spec":{"containers":[{"name":"envoy"}]},"status":{"phase":"Running","containerStatuses":[
			{"name":"envoy","ready":true,"restartCount":2,"containerID":"containerd://c","image":"LONG","state":{"running":{"startedAt":"2026-01-02T03:04:05Z"}}}]}}`))
	if err != nil {
		t.Fatal(err)
	}
	kept := object.(*podObject).pod
	if want := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC); !kept.Since.Equal(want) {
		t.Errorf("since %v, want %v", kept.Since, want)
	}
	facts, err := pod.Parse(kept.JSON)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := facts.Containers[0].State, (pod.State{ID: "containerd://c", Ready: true, Restarts: 2}); got == nil || *got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
