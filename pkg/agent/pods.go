package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// entry is what the agent keeps of a pod.
type entry struct {
	namespace, name, uid string
	mirrorOf             string // the UID of a static pod's manifest
	config               string // the name of the object that has its mesh's configuration
	json                 []byte // trimmed; nil if it is too long to be kept
	hostNetwork          bool
	deleting             bool
	controlled           bool // something makes a new one if this one goes
	phase                string
	since                time.Time // when the latest of its running containers was started
	addresses            []netip.Addr
}

func (e entry) id() pod.ID { return pod.ID{Namespace: e.namespace, Name: e.name, UID: e.uid} }

func (e entry) String() string { return e.namespace + "/" + e.name }

// hasUID reports whether uid is the one by which the API server or the kubelet knows the pod.
func (e entry) hasUID(uid string) bool { return uid != "" && (uid == e.uid || uid == e.mirrorOf) }

// runtimeUID is the UID by which the kubelet and the runtime know the pod.
func (e entry) runtimeUID() string {
	if e.mirrorOf != "" {
		return e.mirrorOf
	}
	return e.uid
}

// podCache is the store of a reflector on this node's pods. It is safe for concurrent use.
type podCache struct {
	dialect mesh.Dialect
	log     *slog.Logger

	mu     sync.RWMutex
	pods   map[types.NamespacedName]entry
	synced bool
	heard  time.Time
}

func newPodCache(dialect mesh.Dialect, log *slog.Logger) *podCache {
	return &podCache{dialect: dialect, log: log, pods: map[types.NamespacedName]entry{}, heard: time.Now()}
}

// run keeps the cache equal to the API server until ctx ends, whatever the API server does.
func (c *podCache) run(ctx context.Context, from *client, node string) {
	source := from.listWatchPods("spec.nodeName="+node, c.decode)
	follow(ctx, "pods", c.log, source, &podObject{}, c, func(error) bool { return false })
}

// age is the time since the API server last said something about this node's pods, or since the start.
func (c *podCache) age() time.Duration {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return time.Since(c.heard)
}

// isSynced reports whether all of the node's pods were listed once.
func (c *podCache) isSynced() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.synced
}

// find returns the pod, if the cache has it under the UID, with its JSON.
func (c *podCache) find(namespace, name, uid string) (entry, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e, ok := c.pods[types.NamespacedName{Namespace: namespace, Name: name}]
	return e, ok && e.hasUID(uid) && e.json != nil
}

// list returns all pods in no order.
func (c *podCache) list() []entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]entry, 0, len(c.pods))
	for _, e := range c.pods {
		out = append(out, e)
	}
	return out
}

func entryOf(obj any) (types.NamespacedName, entry, error) {
	p, ok := obj.(*podObject)
	if !ok {
		return types.NamespacedName{}, entry{}, fmt.Errorf("the API server's list of pods has a %T", obj)
	}
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, p.entry, nil
}

// Add is the reflector's: a pod is there or has changed.
func (c *podCache) Add(obj any) error {
	key, e, err := entryOf(obj)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[key], c.heard = e, time.Now()
	return nil
}

// Update is Add.
func (c *podCache) Update(obj any) error { return c.Add(obj) }

// Delete is the reflector's: a pod has gone.
func (c *podCache) Delete(obj any) error {
	key, _, err := entryOf(obj)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pods, key)
	c.heard = time.Now()
	return nil
}

// Replace is the reflector's: these are all pods.
func (c *podCache) Replace(list []any, _ string) error {
	pods := make(map[types.NamespacedName]entry, len(list))
	for _, obj := range list {
		key, e, err := entryOf(obj)
		if err != nil {
			return err
		}
		pods[key] = e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods, c.synced, c.heard = pods, true, time.Now()
	return nil
}

// Bookmark is the reflector's: nothing has changed, which the API server says about every minute.
func (c *podCache) Bookmark(string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	return nil
}

// Resync does nothing.
func (c *podCache) Resync() error { return nil }
