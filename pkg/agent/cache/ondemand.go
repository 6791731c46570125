package cache

import (
	"context"
	"slices"
	"sync"

	"github.com/detour-cni/detour/pkg/mesh"
)

// OnDemand are Configs for somebody who follows no pods. It follows those revisions that it was last asked for and that exist, at most
// MaxRevisions. It is safe for concurrent use.
type OnDemand struct {
	*Configs
	live Live

	mu       sync.Mutex
	followed []string // the one last asked for first
}

// Live answers what a cache can't; it is *kube.API.
type Live interface {
	Config(ctx context.Context, ref mesh.ConfigRef) (body []byte, absent string, err error)
}

// NewOnDemand returns an empty cache. Of o it needs no Node. It makes no request.
func NewOnDemand(client *Client, live Live, o Options) *OnDemand {
	return &OnDemand{Configs: newConfigs(client, o), live: live}
}

// Run keeps the cache equal to the API server until ctx ends, whatever the API server does.
func (o *OnDemand) Run(ctx context.Context) { o.run(ctx, o.wanted) }

// ConfigOf returns the configuration that ref names. It asks the API server, until ctx ends, for one that it does not follow yet; the
// error says why it is not known. ctx needs a deadline.
func (o *OnDemand) ConfigOf(ctx context.Context, ref mesh.ConfigRef) (Config, error) {
	c := o.get(ref.Name)
	if !c.Known {
		ref.Versions = o.ConfigRef().Versions
		body, absent, err := o.live.Config(ctx, ref)
		if err != nil {
			return Config{}, err
		}
		c = Config{JSON: body, Absent: absent, Known: true}
	}
	if c.JSON != nil && ref.Name != o.usual.ref.Name { // whoever makes up names makes nobody follow them
		o.follow(ref.Name)
	}
	return c, nil
}

func (o *OnDemand) follow(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	others := slices.DeleteFunc(o.followed, func(n string) bool { return n == name })
	o.followed = slices.Insert(others, 0, name)
	o.followed = o.followed[:min(len(o.followed), MaxRevisions)]
}

func (o *OnDemand) wanted() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.followed)
}
