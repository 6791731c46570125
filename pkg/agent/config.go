package agent

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/detour-cni/detour/pkg/mesh"
)

// lookAgain is how often the agent looks whether the API server serves the configuration now, or answers at all.
const lookAgain = 5 * time.Second

// configCache keeps the mesh's one configuration object. It finds out which version of it the API server serves, and
// again when that is no longer served. It is the store of the reflector on it, and safe for concurrent use.
type configCache struct {
	ref   mesh.ConfigRef
	log   *slog.Logger
	found func(version string) // called with each new version
	again time.Duration

	mu       sync.RWMutex
	version  string // served; stays when it is not to be had for a while
	watching bool   // the reflector is up to date: json, or that there is none, can be relied on
	unserved bool   // the API server says that it serves no version
	json     []byte
}

func newConfigCache(ref mesh.ConfigRef, log *slog.Logger, found func(string)) *configCache {
	return &configCache{ref: ref, log: log, found: found, again: lookAgain}
}

// configState is what is known of the configuration.
type configState struct {
	json   []byte
	absent string // why there is none, as half a sentence
	known  bool   // if not, the API server has to be asked
}

// get returns the configuration. A configuration that no version of is served is never known: nothing would tell when
// it is served after all, and then its lists would be missed.
func (c *configCache) get() configState {
	c.mu.RLock()
	defer c.mu.RUnlock()
	switch {
	case !c.watching:
		return configState{}
	case c.json == nil:
		return configState{absent: c.ref.String() + " does not exist", known: true}
	}
	return configState{json: c.json, known: true}
}

// settled reports whether the API server has said what there is of the configuration, be it that it serves none.
func (c *configCache) settled() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.watching || c.unserved
}

// servedVersion is the newest version that the API server was found to serve, "" as long as there is none.
func (c *configCache) servedVersion() string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.version
}

// run keeps the cache equal to the API server until ctx ends.
func (c *configCache) run(ctx context.Context, from *client) {
	said := ""
	for ctx.Err() == nil {
		version, err := c.findVersion(ctx, from)
		now := fmt.Sprint(version, err)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && now != said:
			c.log.Warn("the served version of the mesh's configuration could not be found", "error", err.Error())
		case err == nil && version == "" && now != said:
			c.log.Warn("the API server does not serve the mesh's configuration: is the mesh installed?", "resource", c.ref.Resource, "group", c.ref.Group)
		}
		said = now
		c.setVersion(version, err)
		if version != "" {
			c.watch(ctx, from, version)
		}
		pause(ctx, c.again/2+rand.N(c.again))
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
func (c *configCache) findVersion(ctx context.Context, from *client) (string, error) {
	if c.ref.Group == "" {
		return c.ref.Versions[0], nil // the core group has one
	}
	var group struct{ Versions []struct{ Version string } }
	switch err := from.get(ctx, "/apis/"+c.ref.Group, &group); {
	case gone(err):
		return "", nil
	case err != nil:
		return "", err
	}
	for _, version := range c.ref.Versions {
		if !slices.Contains(group.Versions, struct{ Version string }{version}) {
			continue
		}
		var list struct{ Resources []struct{ Name string } }
		if err := from.get(ctx, "/apis/"+c.ref.Group+"/"+version, &list); err != nil && !gone(err) {
			return "", err
		}
		if slices.Contains(list.Resources, struct{ Name string }{c.ref.Resource}) {
			return version, nil
		}
	}
	return "", nil
}

// watch follows the object until ctx ends or the API server no longer serves it in this version.
func (c *configCache) watch(ctx context.Context, from *client, version string) {
	gv := schema.GroupVersion{Group: c.ref.Group, Version: version}
	root := "/apis/" + gv.String()
	if gv.Group == "" {
		root = "/api/" + version
	}
	source := from.listWatch(root+"/namespaces/"+c.ref.Namespace+"/"+c.ref.Resource, "metadata.name="+c.ref.Name)
	follow(ctx, c.ref.Resource, c.log, source, &configObject{}, &configStore{c, gv.WithKind(c.ref.Kind)}, gone)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watching, c.json = false, nil
}

// configStore is what the reflector of one version writes to.
type configStore struct {
	cache *configCache
	kind  schema.GroupVersionKind
}

func (s *configStore) set(obj any) error {
	o, ok := obj.(*configObject)
	if !ok {
		return fmt.Errorf("the API server's list of %s has a %T", s.cache.ref.Resource, obj)
	}
	if o.Name != s.cache.ref.Name {
		return nil
	}
	data, err := o.as(s.kind)
	if err != nil {
		return err
	}
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	s.cache.json = data
	return nil
}

// Add is the reflector's: the object is there or has changed.
func (s *configStore) Add(obj any) error { return s.set(obj) }

// Update is Add.
func (s *configStore) Update(obj any) error { return s.set(obj) }

// Delete is the reflector's: the object has gone.
func (s *configStore) Delete(any) error {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	s.cache.json = nil
	return nil
}

// Replace is the reflector's: these are all objects.
func (s *configStore) Replace(list []any, _ string) error {
	if len(list) == 0 {
		if err := s.Delete(nil); err != nil {
			return err
		}
	}
	for _, obj := range list {
		if err := s.set(obj); err != nil {
			return err
		}
	}
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	s.cache.watching = true
	return nil
}

// Resync does nothing.
func (s *configStore) Resync() error { return nil }

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
