package mesh_test

import (
	"context"
	"testing"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/testcase"
)

// From the objects' JSON to the policy.
func BenchmarkDecide(b *testing.B) {
	for _, name := range []string{"osm/guide", "istio/everything-at-once"} {
		c := testcase.Find(b, "../..", name)
		request, manifests := c.Pod(b)
		objects, err := manifests.Lookup(context.Background(), request)
		if err != nil {
			b.Fatal(err)
		}
		dialect, _ := mesh.Find(c.Mesh)
		addresses := c.Addresses(b)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				facts, err := pod.Parse(objects.Pod)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := dialect.Decide(mesh.Input{Pod: facts, Config: objects.Config, Addresses: addresses}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
