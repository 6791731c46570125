package cache

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/detour-cni/detour/pkg/mesh"
)

// Config is what is known of a configuration.
type Config struct {
	JSON   []byte
	Absent string // why there is no JSON, as half a sentence
	Known  bool   // if false, the API server has to be asked
}

// configCache keeps one configuration object. It finds out which version of it the API server serves, and again when that is
// no longer served. It is safe for concurrent use.
type configCache struct {
	ref     mesh.ConfigRef
	log     *slog.Logger
	found   func(version string) // called with each new version
	recheck time.Duration
	heard   *hearing

	mu       sync.RWMutex
	version  string                    // served; it stays while the API server is away
	unserved bool                      // the API server says that it serves no version
	objects  cache.SharedIndexInformer // of the served version; nil if there is none
}

func newConfigCache(ref mesh.ConfigRef, o Options) *configCache {
	return &configCache{ref: ref, log: o.Log, found: o.ConfigVersion, recheck: o.Recheck, heard: newHearing()}
}

// isNone reports whether the mesh has no configuration object. That is known without asking.
func (c *configCache) isNone() bool { return c.ref.IsZero() }

// get returns the configuration. As long as no version of it is served, it is unknown: the agent would learn too late that it
// is served after all.
func (c *configCache) get() Config {
	c.mu.RLock()
	objects := c.objects
	c.mu.RUnlock()
	if c.isNone() {
		return Config{Known: true}
	}
	if objects == nil || !objects.HasSynced() {
		return Config{}
	}
	object, ok, err := objects.GetStore().GetByKey(c.ref.Namespace + "/" + c.ref.Name)
	if err != nil || !ok {
		return Config{Absent: c.ref.String() + " does not exist", Known: true}
	}
	return Config{JSON: object.(*configObject).json, Known: true}
}

// age is the time since the API server last said anything about the configuration, 0 if there is nothing to say.
func (c *configCache) age() time.Duration {
	if c.isNone() {
		return 0
	}
	return c.heard.silence()
}

// settled reports whether the configuration is known, be it that the API server serves none.
func (c *configCache) settled() bool {
	c.mu.RLock()
	unserved := c.unserved
	c.mu.RUnlock()
	return unserved || c.get().Known
}

// servedVersion is the newest version that the API server served when last asked, "" if it never served one.
func (c *configCache) servedVersion() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.version
}

// rarest is by how much the looks for a configuration that stays unserved become rarer, as rare as client-go's retries: all nodes
// look, and lookups ask the API server meanwhile.
const rarest = 6

// run keeps the cache equal to the API server until ctx ends.
func (c *configCache) run(ctx context.Context, from *Client) {
	said, wait := "", c.recheck
	for ctx.Err() == nil && !c.isNone() {
		version, err := c.findVersion(ctx, from)
		now := fmt.Sprint(version, err)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && now != said:
			c.log.Warn("API version of the mesh's configuration not found; trying again", "event", "config-version-failed", "error", err.Error())
		case err == nil && version == "" && now != said:
			c.log.Warn("the API server does not serve the mesh's configuration: is the mesh installed?", "event", "config-not-served", "resource", c.ref.Resource, "group", c.ref.Group)
		}
		said = now
		c.setVersion(version, err)
		if version != "" {
			c.watch(ctx, from, version)
			wait = c.recheck
		}
		pause(ctx, wait/2+rand.N(wait))
		wait = min(2*wait, rarest*c.recheck)
	}
}

func (c *configCache) setVersion(version string, err error) {
	c.mu.Lock()
	c.unserved = err == nil && version == ""
	changed := version != "" && version != c.version
	if changed {
		c.version = version
	}
	c.mu.Unlock()
	if changed && c.found != nil {
		c.found(version)
	}
}

// findVersion returns the newest version in which the API server serves the configuration, "" if it serves none.
func (c *configCache) findVersion(ctx context.Context, from *Client) (string, error) {
	if c.ref.Group == "" {
		return c.ref.Versions[0], nil // the core group has one
	}
	var group struct{ Versions []struct{ Version string } }
	switch err := from.Get(ctx, "/apis/"+c.ref.Group, &group); {
	case apierrors.IsNotFound(err):
		return "", nil
	case err != nil:
		return "", err
	}
	for _, version := range c.ref.Versions {
		if !slices.Contains(group.Versions, struct{ Version string }{version}) {
			continue
		}
		var list struct{ Resources []struct{ Name string } }
		if err := from.Get(ctx, "/apis/"+c.ref.Group+"/"+version, &list); err != nil && !apierrors.IsNotFound(err) {
			return "", err
		}
		if slices.Contains(list.Resources, struct{ Name string }{c.ref.Resource}) {
			return version, nil
		}
	}
	return "", nil
}

// watch follows the object until ctx ends or the API server no longer serves it in this version.
func (c *configCache) watch(ctx context.Context, from *Client, version string) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	gv := schema.GroupVersion{Group: c.ref.Group, Version: version}
	root := "/apis/" + gv.String()
	if gv.Group == "" {
		root = "/api/" + version
	}
	source := from.listWatch(root+"/namespaces/"+c.ref.Namespace+"/"+c.ref.Resource, "metadata.name="+c.ref.Name, c.heard.hear)
	objects := newInformer(source, &configObject{}, c.ref.Resource, c.log, func(err error) {
		if apierrors.IsNotFound(err) {
			stop()
		}
	})
	if err := objects.SetTransform(asKind(gv.WithKind(c.ref.Kind))); err != nil {
		panic(err) // only a running informer refuses a transform
	}
	c.follow(objects)
	defer c.follow(nil)
	objects.RunWithContext(ctx)
}

func (c *configCache) follow(objects cache.SharedIndexInformer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.objects = objects
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
