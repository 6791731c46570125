package agent

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/detour-cni/detour/pkg/mesh"
)

// mostRevisions is how many configurations the agent follows beside the mesh's usual one. Pods name them, with whatever their
// owners write: the configurations that most of the node's pods have are followed, of the others the API server is asked
// with each lookup.
const mostRevisions = 16

// revisions are the configurations beside the usual one that pods of this node have. It is safe for concurrent use.
type revisions struct {
	usual mesh.ConfigRef
	log   *slog.Logger

	mu     sync.RWMutex
	caches map[string]*configCache // by the object's name
}

// get returns what is known of the configuration of this name.
func (r *revisions) get(name string) configState {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, ok := r.caches[name]; ok {
		return c.get()
	}
	return configState{}
}

// configOf returns what is known of the pod's configuration.
func (a *Agent) configOf(e entry) configState {
	if e.config == a.conf.Dialect.Config.Name {
		return a.config.get()
	}
	return a.revisions.get(e.config)
}

// add makes a cache of the configuration.
func (r *revisions) add(name string) *configCache {
	ref := r.usual
	ref.Name = name
	c := newConfigCache(ref, r.log, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.caches[name] = c
	return c
}

func (r *revisions) drop(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.caches, name)
}

// keepRevisions follows the configurations of the node's pods until ctx ends.
func (a *Agent) keepRevisions(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	stops := map[string]context.CancelFunc{}
	for ctx.Err() == nil {
		wanted := revisionsOf(a.pods.list(), a.conf.Dialect.Config.Name)
		for name, stop := range stops {
			if !slices.Contains(wanted, name) {
				stop()
				delete(stops, name)
				a.revisions.drop(name)
			}
		}
		for _, name := range wanted {
			if stops[name] != nil {
				continue
			}
			cache := a.revisions.add(name)
			following, stop := context.WithCancel(ctx)
			stops[name] = stop
			running.Go(func() { cache.run(following, a.client) })
		}
		pause(ctx, a.timing.check)
	}
}

// revisionsOf returns the configurations other than the usual one that most of the pods have.
func revisionsOf(pods []entry, usual string) []string {
	count := map[string]int{}
	for _, e := range pods {
		if e.config != usual {
			count[e.config]++
		}
	}
	byCount := slices.SortedFunc(maps.Keys(count), func(x, y string) int {
		return cmp.Or(count[y]-count[x], cmp.Compare(x, y))
	})
	return byCount[:min(len(byCount), mostRevisions)]
}
