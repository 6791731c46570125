// Package cache keeps this node's pods, and the configurations of their mesh, equal to the API server. client-go's informers do
// so; only the decoding of pods is the package's own. An informer that decodes whole v1 Pods and transforms them is killed at
// the manifest's limit of 128 MiB by a list of 100 pods of 1.4 MB (112 MB resident as a stream of events, against 60 MB here).
package cache

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// Options say what a Cache is of.
type Options struct {
	Node    string
	Dialect mesh.Dialect
	// ConfigVersion is called with each version in which the API server serves the mesh's configuration. nil calls nothing. It
	// must not block.
	ConfigVersion func(version string)
	// Recheck is how often the cache looks again for a configuration that is not served, and at what configurations pods name.
	Recheck time.Duration
	Log     *slog.Logger
}

// Cache has this node's pods and the configurations of their mesh. It is safe for concurrent use.
type Cache struct {
	Options
	*Configs
	pods  cache.SharedIndexInformer
	heard *hearing // about the pods
}

// New returns an empty cache. It makes no request.
func New(client *Client, o Options) *Cache {
	c := &Cache{Options: o, Configs: newConfigs(client, o), heard: newHearing()}
	source := client.listWatchPods("spec.nodeName="+o.Node, c.decode, c.heard.hear)
	c.pods = newInformer(source, &podObject{}, "pods", o.Log, func(error) {})
	return c
}

// Run keeps the cache equal to the API server until ctx ends, whatever the API server does.
func (c *Cache) Run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { c.pods.RunWithContext(withLog(ctx, c.Log)) })
	c.run(ctx, func() []string { return revisionsOf(c.Pods(), c.Dialect.Config.Name) })
}

// Age is the time since the API server last said anything about this node's pods, or since New.
func (c *Cache) Age() time.Duration { return c.heard.silence() }

// AgeOf is the longer of Age and the time since the API server last said anything about the pod's configuration, if it has one.
func (c *Cache) AgeOf(p nodepod.Pod) time.Duration { return max(c.Age(), c.ageOf(p.Config)) }

// HasPods reports whether all of the node's pods were listed once.
func (c *Cache) HasPods() bool { return c.pods.HasSynced() }

// Pod returns the pod with its JSON, if the cache has it under the UID.
func (c *Cache) Pod(id pod.ID) (nodepod.Pod, bool) {
	object, ok, err := c.pods.GetStore().GetByKey(id.String())
	if err != nil || !ok {
		return nodepod.Pod{}, false
	}
	p := object.(*podObject).pod
	return p, p.HasUID(id.UID) && p.JSON != nil
}

// Pods returns all pods in no order.
func (c *Cache) Pods() []nodepod.Pod {
	objects := c.pods.GetStore().List()
	out := make([]nodepod.Pod, 0, len(objects))
	for _, o := range objects {
		out = append(out, o.(*podObject).pod)
	}
	return out
}

// ConfigOf returns what is known of the pod's configuration.
func (c *Cache) ConfigOf(p nodepod.Pod) Config { return c.get(p.Config) }
