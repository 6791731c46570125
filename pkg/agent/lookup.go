package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/pod"
)

// answer does what the request wants.
func (a *Agent) answer(ctx context.Context, r agentapi.Request) agentapi.Answer {
	switch {
	case r.Report != nil:
		a.report(*r.Report)
		return agentapi.Answer{}
	case r.Ready:
		return agentapi.Answer{Error: a.noLookups(ctx)}
	}
	patience := a.timing.lookup
	if r.Within > 0 {
		patience = min(patience, r.Within*9/10) // the answer has to arrive, above all if it says why there is none
	}
	known, age, ok := a.fromCache(*r.Lookup)
	if ok && age < a.timing.silence {
		a.metrics.lookups.WithLabelValues("cache").Inc()
		return known
	}
	if ok {
		patience = min(patience, a.timing.old)
	}
	answer, err := a.fromServer(ctx, *r.Lookup, patience)
	from := "live"
	if status, said := errors.AsType[*kube.StatusError](err); err != nil && ok && (!said || !status.Final()) {
		from, answer = "old", known
		answer.Old = fmt.Sprintf("the API server has been silent for %s: pod and configuration are as they were then", age.Round(time.Second))
	} else if err != nil {
		from = "failed"
	}
	a.metrics.lookups.WithLabelValues(from).Inc()
	return answer
}

// fromCache answers if the cache has the pod under this UID and the configuration is known. age is how long the API server has
// said nothing about one of them.
func (a *Agent) fromCache(id pod.ID) (answer agentapi.Answer, age time.Duration, ok bool) {
	p, ok := a.cache.Pod(id)
	if !ok {
		return agentapi.Answer{}, 0, false
	}
	if kube.NewRequest(a.conf.Dialect, id).ConfigOf(p.JSON).IsZero() {
		return agentapi.Answer{Pod: p.JSON}, a.cache.Age(), true
	}
	config := a.cache.ConfigOf(p)
	return agentapi.Answer{Pod: p.JSON, Config: config.JSON, ConfigAbsent: config.Absent}, a.cache.AgeOf(p), config.Known
}

// maxLive is how many lookups may ask the API server side by side; more wait. Each may bring some megabytes.
const maxLive = 8

// fromServer asks the API server for so long. The answer has the error, too.
func (a *Agent) fromServer(ctx context.Context, id pod.ID, patience time.Duration) (agentapi.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	objects, err := a.lookupLive(ctx, id)
	if err != nil {
		return agentapi.Answer{Error: err.Error(), NotFound: errors.Is(err, kube.ErrNotFound)}, err
	}
	return agentapi.Answer{Pod: objects.Pod, Config: objects.Config, ConfigAbsent: objects.ConfigAbsent}, nil
}

// lookupLive asks the API server. It trims the pod before it lets the next lookup ask.
func (a *Agent) lookupLive(ctx context.Context, id pod.ID) (kube.Objects, error) {
	select {
	case a.lives <- struct{}{}:
		defer func() { <-a.lives }()
	case <-ctx.Done():
		return kube.Objects{}, fmt.Errorf("get pod %s: %d other lookups wait for the API server, and no more may", id, maxLive)
	}
	r := kube.NewRequest(a.conf.Dialect, id)
	r.Config = a.cache.ConfigRef()
	objects, err := a.live.Lookup(ctx, r)
	if err == nil {
		objects.Pod, err = pod.Trim(objects.Pod, a.conf.Dialect.Sidecar, a.conf.Dialect.Reads)
	}
	return objects, err
}

// cluster is what the repair knows of the node's pods.
type cluster struct{ *Agent }

// Pods are the cache's.
func (c cluster) Pods() []nodepod.Pod { return c.cache.Pods() }

// Known reports whether the cache has all pods and the mesh's usual configuration.
func (c cluster) Known() bool { return c.cache.HasPods() && c.cache.KnowsConfig() }

// Decide asks the mesh about the pod. It asks the API server for a pod that is too long for the cache.
func (c cluster) Decide(ctx context.Context, p nodepod.Pod) (decision.Decision, error) {
	in := decision.Input{ID: pod.ID{Namespace: p.Namespace, Name: p.Name}, Pod: p.JSON, Addresses: p.Addresses}
	if c.conf.Excluded(p.Namespace) != "" { // whatever else is known
		return c.conf.Decide(in)
	}
	config := c.cache.ConfigOf(p)
	if !config.Known {
		return decision.Decision{}, fmt.Errorf("%w: the cache does not have its configuration %s yet", repair.ErrUnknown, p.Config)
	}
	in.Config, in.ConfigAbsent = config.JSON, config.Absent
	if in.Pod == nil {
		ctx, cancel := context.WithTimeout(ctx, c.timing.lookup)
		defer cancel()
		objects, err := c.lookupLive(ctx, p.ID)
		if err != nil {
			return decision.Decision{}, fmt.Errorf("%w: %w", repair.ErrUnknown, err)
		}
		in.Pod = objects.Pod
	}
	return c.conf.Decide(in)
}
