package agent

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/detour-cni/detour/pkg/attachment"
)

// Repair is what becomes of meshed pods that run without redirection.
type Repair string

// The modes of repair.
const (
	Report  Repair = "report"   // an Event on the pod
	Evict   Repair = "evict"    // evicted, so that its controller makes a new one; without a controller, an Event
	InPlace Repair = "in-place" // programmed; connections that are open stay as they are
)

// ParseRepair reads the value of an option.
func ParseRepair(s string) (Repair, error) {
	switch r := Repair(s); r {
	case Report, Evict, InPlace:
		return r, nil
	}
	return "", fmt.Errorf("repair: %q is none of report, evict, in-place", s)
}

// repair does what the mode says and reports whether the pod is programmed now. What fails is tried again at the next
// sweep.
func (a *Agent) repair(ctx context.Context, f finding) bool {
	mode, hint := a.conf.Repair, "recreate it"
	switch {
	case f.refused != "":
		mode, hint = Report, f.refused
	case mode == Evict && f.pod.mirrorOf != "":
		mode, hint = Report, "it is a static pod: restart it on its node"
	case mode == Evict && !f.pod.controlled:
		mode, hint = Report, "nothing would make it anew if it were evicted: recreate it"
	}
	var done bool
	var result string
	switch mode {
	case Evict:
		result = a.evict(ctx, f)
	case InPlace:
		done, result = a.repairInPlace(ctx, f)
	default:
		result = "reported"
		a.tell(f, hint)
	}
	a.metrics.repairs.WithLabelValues(string(mode), result).Inc()
	return done
}

// why says how the pod came to run without redirection.
func (f finding) why() string {
	if f.old.Outcome != attachment.Allowed {
		return "it was started without detour"
	}
	return "detour could not program it and onError is allow (" + f.old.Reason + ")"
}

// tell reports the pod to its owner, and in the log unless the sweep before has found it too.
func (a *Agent) tell(f finding, hint string) {
	e := f.pod
	if !a.told[e.uid] {
		a.log.Warn("a meshed pod runs without redirection", "pod", e.String(), "reason", f.why(), "hint", hint)
	}
	a.events.record(event{
		namespace: e.namespace, pod: e.name, uid: e.runtimeUID(), warning: true, reason: reasonUnprogrammed,
		message: fmt.Sprintf("The pod is in the mesh (%s), but its connections bypass the proxy: %s; %s", a.conf.Dialect.Name, f.why(), hint),
	})
}

// evict asks for the pod's eviction, which its disruption budget may refuse for now. The pod ends later, in its time.
func (a *Agent) evict(ctx context.Context, f finding) string {
	e := f.pod
	path := "/api/v1/namespaces/" + e.namespace + "/pods/" + e.name + "/eviction"
	err := a.client.send(ctx, "POST", path, plainJSON, map[string]any{
		"apiVersion":    "policy/v1",
		"kind":          "Eviction",
		"metadata":      map[string]any{"namespace": e.namespace, "name": e.name},
		"deleteOptions": map[string]any{"preconditions": map[string]any{"uid": e.uid}}, // not another of the same name
	})
	log := a.log.With("pod", e.String())
	switch {
	case err == nil:
		log.Info("a meshed pod that runs without redirection is evicted")
		pause(ctx, a.timing.evict) // so that a whole node doesn't go at once
		return "evicted"
	case apierrors.IsTooManyRequests(err):
		log.Info("a meshed pod that runs without redirection can't be evicted yet", "reason", err.Error())
		a.tell(f, "its disruption budget does not let it be evicted yet")
		return "refused-by-budget"
	case gone(err), apierrors.IsConflict(err):
		return "gone"
	}
	log.Warn("a meshed pod that runs without redirection could not be evicted", "error", err.Error())
	a.tell(f, "it could not be evicted: recreate it")
	return "failed"
}

// repairInPlace programs the pod and says so.
func (a *Agent) repairInPlace(ctx context.Context, f finding) (done bool, result string) {
	e := f.pod
	if err := a.program(ctx, f); err != nil {
		a.log.Error("a meshed pod that runs without redirection could not be programmed", "pod", e.String(), "error", err.Error())
		a.tell(f, "it could not be programmed in place: "+err.Error())
		return false, "failed"
	}
	a.log.Info("a meshed pod that ran without redirection is programmed", "pod", e.String())
	a.events.record(event{
		namespace: e.namespace, pod: e.name, uid: e.runtimeUID(), reason: reasonRepaired,
		message: fmt.Sprintf("The pod is in the mesh (%s) and ran without redirection: %s. It is programmed now; connections that were open bypass the proxy until they end", a.conf.Dialect.Name, f.why()),
	})
	return true, "programmed"
}
