package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/mesh"
)

// readiness is Missing, and a remark for a node that is ready.
func (a *Agent) readiness(ctx context.Context) (missing []string, remark string) {
	return a.Missing(ctx), a.remark(a.cache.Age())
}

// remark says what works while the API server has been silent for so long, "" if that is not long.
func (a *Agent) remark(silence time.Duration) string {
	if silence < cache.Silence || !a.cache.HasPods() {
		return ""
	}
	return fmt.Sprintf("; the API server has said nothing for %s: pods that the agent knows start as it knows them, others wait for it", silence.Round(time.Second))
}

// Missing says what keeps this node from serving an ADD, one sentence each; nothing means that it would be served.
func (a *Agent) Missing(ctx context.Context) []string {
	var missing []string
	if ok, what := a.conf.Installed(); !ok {
		missing = append(missing, "installation: "+what)
	}
	if why := a.socket.Missing(); why != "" {
		missing = append(missing, "socket: "+why)
	}
	if err := attachment.NewStore(a.conf.StateDir).Writable(); err != nil {
		missing = append(missing, "state folder: "+err.Error())
	}
	if why := a.noLookups(ctx); why != "" {
		missing = append(missing, why)
	}
	return missing
}

// noLookups says why lookups can't be answered, "" if they can. A cache that was complete once answers for the pods it has,
// however long the API server is silent afterwards. Until it is complete, lookups need the API server.
func (a *Agent) noLookups(ctx context.Context) string {
	if a.cache.HasPods() && a.cache.HasConfig() {
		return ""
	}
	if err := a.probe.ask(ctx, a.timing, a.live, a.conf.Dialect.Config); err != nil {
		return "cache: it is not complete, and the API server can't be asked instead: " + err.Error()
	}
	return ""
}

// probe remembers for a while whether the API server can be asked: anyone who reaches the agent's port may ask for its readiness,
// however often.
type probe struct {
	mu   sync.Mutex
	next time.Time
	wait time.Duration
	err  error
}

// rarest is by how much the requests become rarer as they fail: an API server that is too busy for all nodes at once gets no more of
// them than it must.
const rarest = 6

// ask makes a lookup's requests if the last ones were made some time ago. Concurrent callers wait for them.
func (p *probe) ask(ctx context.Context, t timing, api live, ref mesh.ConfigRef) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !time.Now().Before(p.next) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.ready) // the answer is for others as well
		defer cancel()
		p.err = api.Ready(ctx, ref)
		p.wait = min(2*p.wait, rarest*t.probe)
		if p.err == nil || p.wait == 0 {
			p.wait = t.probe
		}
		p.next = time.Now().Add(p.wait)
	}
	return p.err
}
