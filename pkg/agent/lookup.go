package agent

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
)

// answer does what the request wants.
func (a *Agent) answer(ctx context.Context, r agentapi.Request) agentapi.Answer {
	if r.Lookup != nil {
		return a.lookup(ctx, *r.Lookup)
	}
	a.report(*r.Report)
	return agentapi.Answer{}
}

// lookup answers from the cache if that has the pod under this UID and the configuration is known, and otherwise asks the
// API server within its time.
func (a *Agent) lookup(ctx context.Context, l agentapi.Lookup) agentapi.Answer {
	config := a.config.get()
	if e, ok := a.pods.find(l.Namespace, l.Name, l.UID); ok && config.known {
		a.metrics.lookups.WithLabelValues("cache").Inc()
		return agentapi.Answer{Pod: e.json, Config: config.json, ConfigAbsent: config.absent}
	}
	ctx, cancel := context.WithTimeout(ctx, a.timing.lookup)
	defer cancel()
	objects, err := a.live.Lookup(ctx, kube.Request{Namespace: l.Namespace, Name: l.Name, Config: a.configRef()})
	if err != nil {
		a.metrics.lookups.WithLabelValues("failed").Inc()
		return agentapi.Answer{Error: err.Error(), NotFound: errors.Is(err, kube.ErrNotFound)}
	}
	a.metrics.lookups.WithLabelValues("live").Inc()
	return agentapi.Answer{Pod: objects.Pod, Config: objects.Config, ConfigAbsent: objects.ConfigAbsent}
}

// configRef names the configuration in the version that is served, or in all as long as that is unknown.
func (a *Agent) configRef() kube.ConfigRef {
	ref := kube.ConfigRef(a.conf.Dialect.Config)
	if v := a.config.servedVersion(); v != "" && a.config.get().known {
		ref.Versions = []string{v}
	}
	return ref
}

// The outcomes of a report.
const (
	programmed = "programmed"
	skipped    = "skipped"
	allowed    = "allowed"
	failed     = "failed"
)

// codeRefused is cniplugin.CodeRefused, which would cost the agent the plugin's packages.
const codeRefused = 100

// classes are the reasons of an ADD that did not program its pod although it should have, by CNI error code.
var classes = map[uint]string{
	4:           "arguments",    // CNI_ARGS make no sense
	6:           "prev-result",  // prevResult can't be read
	7:           "net-conf",     // the network configuration is wrong
	8:           "namespace",    // no network namespace, or the host's
	11:          "api-server",   // no answer in time
	50:          "unavailable",  // no ADD can be served now
	codeRefused: "pod-refused",  // the pod or the mesh's configuration has to be changed
	999:         "plugin-error", // anything else
}

// reasonClass is one of few words for why an ADD ended as it did.
func reasonClass(r agentapi.Report) string {
	if r.Outcome == programmed || r.Outcome == skipped {
		return "none"
	}
	if class, ok := classes[r.Code]; ok {
		return class
	}
	return "other"
}

// stages are those that the plugin takes the time of.
var stages = map[string]bool{"conf": true, "lookup": true, "decide": true, "enter": true, "save": true, "apply": true, "total": true}

// report counts what became of an ADD and tells the pod's owner what only he can mend.
func (a *Agent) report(r agentapi.Report) {
	a.metrics.adds.WithLabelValues(r.Outcome, reasonClass(r)).Inc()
	for stage, ms := range r.Stages {
		if !stages[stage] {
			stage = "other"
		}
		if ms >= 0 && !math.IsInf(ms, 0) {
			a.metrics.stages.WithLabelValues(stage).Observe(ms / 1000)
		}
	}
	if r.Code != codeRefused || r.Namespace == "" {
		return
	}
	e := event{namespace: r.Namespace, pod: r.Name, uid: r.UID, warning: true, reason: reasonRefused, message: r.Reason}
	if r.Outcome == allowed {
		e.reason, e.message = reasonUnmeshed, "The pod runs UNMESHED, as onError is allow: "+r.Reason
	}
	a.events.record(e)
}

// checkRequest fails unless the request makes sense; nothing of one that doesn't gets into a label or a path.
func checkRequest(r agentapi.Request) error {
	switch {
	case (r.Lookup == nil) == (r.Report == nil):
		return errors.New("a request is either a lookup or a report")
	case r.Lookup != nil:
		return checkPod(r.Lookup.Namespace, r.Lookup.Name)
	case r.Report.Namespace != "" || r.Report.Name != "": // a container that is no pod has neither
		if err := checkPod(r.Report.Namespace, r.Report.Name); err != nil {
			return err
		}
	}
	switch r.Report.Outcome {
	case programmed, skipped, allowed, failed:
		return nil
	}
	return fmt.Errorf("outcome %.40q is none of programmed, skipped, allowed, failed", r.Report.Outcome)
}

func checkPod(namespace, name string) error {
	if !mesh.IsName(namespace) || !mesh.IsName(name) {
		return fmt.Errorf("%.300q in %.300q is not a pod's name", name, namespace)
	}
	return nil
}
