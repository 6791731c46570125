package cache

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/mesh"
)

// Configs has a mesh's usual configuration and those of revisions. It is safe for concurrent use.
type Configs struct {
	client    *Client
	usual     *configCache
	revisions *revisions
}

func newConfigs(client *Client, o Options) *Configs {
	return &Configs{client, newConfigCache(o.Dialect.Config, o), &revisions{options: o, caches: map[string]*configCache{}}}
}

// run keeps the configurations equal to the API server until ctx ends; wanted are the revisions'.
func (c *Configs) run(ctx context.Context, wanted func() []string) {
	ctx = withLog(ctx, c.usual.log)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { c.usual.run(ctx, c.client) })
	c.followRevisions(ctx, wanted)
}

// followRevisions follows the configurations that wanted names until ctx ends.
func (c *Configs) followRevisions(ctx context.Context, wanted func() []string) {
	var running sync.WaitGroup
	defer running.Wait()
	stops := map[string]context.CancelFunc{}
	for ctx.Err() == nil {
		names := wanted()
		for name, stop := range stops {
			if !slices.Contains(names, name) {
				stop()
				delete(stops, name)
				c.revisions.drop(name)
			}
		}
		for _, name := range names {
			if stops[name] != nil {
				continue
			}
			config := c.revisions.add(name)
			following, stop := context.WithCancel(ctx)
			stops[name] = stop
			running.Go(func() { config.run(following, c.client) })
		}
		pause(ctx, c.revisions.options.Recheck/2)
	}
}

// get returns what is known of the configuration of this name.
func (c *Configs) get(name string) Config {
	if name == c.usual.ref.Name {
		return c.usual.get()
	}
	return c.revisions.get(name)
}

// ageOf is the time since the API server last said anything about the configuration of this name.
func (c *Configs) ageOf(name string) time.Duration {
	if name == c.usual.ref.Name {
		return c.usual.age()
	}
	return c.revisions.ageOf(name)
}

// HasConfig reports whether it is known what the mesh's usual configuration is, or that the API server serves none.
func (c *Configs) HasConfig() bool { return c.usual.settled() }

// KnowsConfig reports whether the mesh's usual configuration, or that it does not exist, is known.
func (c *Configs) KnowsConfig() bool { return c.usual.get().Known }

// ConfigRef names the mesh's usual configuration in the version that is served, or in all versions while that is unknown.
func (c *Configs) ConfigRef() mesh.ConfigRef {
	ref := c.usual.ref
	if v := c.usual.servedVersion(); v != "" && c.usual.get().Known {
		ref.Versions = []string{v}
	}
	return ref
}
