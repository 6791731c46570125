package cache

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
)

// MaxRevisions is how many configurations a Cache follows beside the mesh's usual one. Pods name them, with whatever their owners
// write: the cache follows those that most pods name, and each lookup asks the API server for the others.
const MaxRevisions = 16

// revisions are the followed configurations beside the usual one. It is safe for concurrent use.
type revisions struct {
	options Options

	mu     sync.RWMutex
	caches map[string]*configCache // by the object's name
}

// get returns what is known of the configuration of this name.
func (r *revisions) get(name string) Config {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, ok := r.caches[name]; ok {
		return c.get()
	}
	return Config{}
}

func (r *revisions) ageOf(name string) time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if c, ok := r.caches[name]; ok {
		return c.age()
	}
	return 0
}

func (r *revisions) add(name string) *configCache {
	ref := r.options.Dialect.Config
	ref.Name = name
	c := newConfigCache(ref, r.options)
	c.found = nil // only the usual one tells
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

// revisionsOf returns the configurations other than the usual one that most of the pods name.
func revisionsOf(pods []nodepod.Pod, usual string) []string {
	count := map[string]int{}
	for _, p := range pods {
		if p.Config != usual {
			count[p.Config]++
		}
	}
	byCount := slices.SortedFunc(maps.Keys(count), func(x, y string) int {
		return cmp.Or(count[y]-count[x], cmp.Compare(x, y))
	})
	return byCount[:min(len(byCount), MaxRevisions)]
}
