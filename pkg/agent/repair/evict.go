package repair

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// evict asks for the pod's eviction, which its disruption budget may refuse for now. An evicted pod ends later.
func (r *Repairer) evict(ctx context.Context, f Finding) (result string) {
	p := f.Pod
	err := r.Create(ctx, "/api/v1/namespaces/"+p.Namespace+"/pods/"+p.Name+"/eviction", map[string]any{
		"apiVersion":    "policy/v1",
		"kind":          "Eviction",
		"metadata":      map[string]any{"namespace": p.Namespace, "name": p.Name},
		"deleteOptions": map[string]any{"preconditions": map[string]any{"uid": p.UID}}, // not another pod of the same name
	})
	log := r.logFor(p)
	switch {
	case err == nil:
		log.Info("unprogrammed pod evicted", "event", "pod-evicted", "reason", f.why())
		pause(ctx, r.Timing.Evict) // so that not all of a node's pods go at once
		return "evicted"
	case apierrors.IsTooManyRequests(err):
		log.Info("unprogrammed pod can't be evicted yet", "event", "pod-eviction-refused", "error", err.Error())
		r.report(f, "its disruption budget does not allow its eviction yet")
		return "refused-by-budget"
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return "gone"
	}
	log.Warn("unprogrammed pod not evicted", "event", "pod-eviction-failed", "error", err.Error())
	r.report(f, "it could not be evicted: recreate it")
	return "failed"
}
