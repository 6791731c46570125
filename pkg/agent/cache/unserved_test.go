package cache

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/mesh"
)

// All nodes of a cluster look.
func TestLooksForAConfigurationThatStaysUnservedBecomeRare(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	s.Served = nil
	osm, _ := mesh.Find("osm")
	client, err := NewClient(&rest.Config{Host: s.URL}, osm.Config)
	if err != nil {
		t.Fatal(err)
	}
	const recheck = 20 * time.Millisecond
	c := newConfigs(client, Options{Dialect: osm, Recheck: recheck, Log: slog.New(slog.DiscardHandler)})
	agenttest.Start(t, func(ctx context.Context) error {
		c.run(ctx, func() []string { return nil })
		return nil
	})
	agenttest.Eventually(t, "it has looked", c.HasConfig)
	looks := func() int { return s.Count("GET /apis/" + osm.Config.Group) }
	before := looks()
	time.Sleep(100 * recheck)
	if n := looks() - before; n > 50 {
		t.Errorf("%d looks in the time of 100", n)
	}
	s.Update(func() { s.Served = []string{"v1alpha2"} })
	agenttest.Eventually(t, "it is known that there is none", c.KnowsConfig)
}
