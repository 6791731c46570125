package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// answer does what the request wants. conn is its peer's.
func (a *Agent) answer(ctx context.Context, r agentapi.Request, conn net.Conn) agentapi.Answer {
	switch {
	case r.Report != nil:
		a.report(*r.Report)
		return agentapi.Answer{}
	case r.Ready:
		return agentapi.Answer{Error: a.noLookups(ctx)}
	}
	if answer, ok := a.fromCache(*r.Lookup); ok {
		a.metrics.lookups.WithLabelValues("cache").Inc()
		return answer
	}
	ctx, done := whileThere(ctx, conn)
	defer done()
	return a.fromServer(ctx, *r.Lookup)
}

// fromCache answers if the cache has the pod under this UID and the configuration is known.
func (a *Agent) fromCache(l pod.ID) (agentapi.Answer, bool) {
	e, ok := a.pods.find(l.Namespace, l.Name, l.UID)
	if !ok {
		return agentapi.Answer{}, false
	}
	config := a.configOf(e)
	if !config.known {
		return agentapi.Answer{}, false
	}
	return agentapi.Answer{Pod: e.json, Config: config.json, ConfigAbsent: config.absent}, true
}

// mostLive is how many lookups may be at the API server side by side; more wait. Each may bring some megabytes.
const mostLive = 8

// fromServer asks the API server, within a time of the agent's own.
func (a *Agent) fromServer(ctx context.Context, l pod.ID) agentapi.Answer {
	ctx, cancel := context.WithTimeout(ctx, a.timing.lookup)
	defer cancel()
	objects, err := a.lookupLive(ctx, l)
	if err != nil {
		a.metrics.lookups.WithLabelValues("failed").Inc()
		return agentapi.Answer{Error: err.Error(), NotFound: errors.Is(err, kube.ErrNotFound)}
	}
	a.metrics.lookups.WithLabelValues("live").Inc()
	return agentapi.Answer{Pod: objects.Pod, Config: objects.Config, ConfigAbsent: objects.ConfigAbsent}
}

// lookupLive asks the API server. It trims the pod before it lets the next lookup ask.
func (a *Agent) lookupLive(ctx context.Context, l pod.ID) (kube.Objects, error) {
	select {
	case a.lives <- struct{}{}:
		defer func() { <-a.lives }()
	case <-ctx.Done():
		return kube.Objects{}, fmt.Errorf("get pod %s: %d other lookups wait for the API server, and no more may", l, mostLive)
	}
	r := kube.NewRequest(a.conf.Dialect, l)
	r.Config = a.configRef()
	objects, err := a.live.Lookup(ctx, r)
	if err == nil {
		objects.Pod, err = pod.Trim(objects.Pod, a.conf.Dialect.Sidecar, a.conf.Dialect.Reads)
	}
	return objects, err
}

// configRef names the configuration in the version that is served, or in all as long as that is unknown.
func (a *Agent) configRef() mesh.ConfigRef {
	ref := a.conf.Dialect.Config
	if v := a.config.servedVersion(); v != "" && a.config.get().known {
		ref.Versions = []string{v}
	}
	return ref
}

// classes are the reasons of an ADD that did not program its pod although it should have, by CNI error code.
var classes = map[uint]string{
	4:                    "arguments",    // CNI_ARGS make no sense
	6:                    "prev-result",  // prevResult can't be read
	7:                    "net-conf",     // the network configuration is wrong
	8:                    "namespace",    // no network namespace, or the host's
	11:                   "api-server",   // no answer in time
	50:                   "unavailable",  // no ADD can be served now
	agentapi.CodeRefused: "pod-refused",  // the pod or the mesh's configuration has to be changed
	999:                  "plugin-error", // anything else
}

// reasonClass is one of few words for why an ADD ended as it did.
func reasonClass(r agentapi.Report) string {
	if r.Outcome == attachment.Programmed || r.Outcome == attachment.Skipped {
		return "none"
	}
	if class, ok := classes[r.Code]; ok {
		return class
	}
	return "other"
}

// report counts what became of an ADD and tells the pod's owner what only he can mend.
func (a *Agent) report(r agentapi.Report) {
	a.metrics.adds.WithLabelValues(string(r.Outcome), reasonClass(r)).Inc()
	if r.Fallback {
		a.metrics.lookups.WithLabelValues("fallback").Inc()
	}
	for stage, ms := range r.Stages {
		if stage != "total" && !slices.Contains(agentapi.Stages, stage) {
			stage = "other"
		}
		if ms >= 0 && !math.IsInf(ms, 0) {
			a.metrics.stages.WithLabelValues(stage).Observe(ms / 1000)
		}
	}
	if r.Code != agentapi.CodeRefused || r.Namespace == "" {
		return
	}
	e := event{namespace: r.Namespace, pod: r.Name, uid: r.UID, warning: true, reason: reasonRefused, message: r.Reason}
	if r.Outcome == attachment.Allowed {
		e.reason, e.message = reasonUnmeshed, "The pod runs UNMESHED, as onError is allow: "+r.Reason
	}
	a.events.record(e)
}

// checkRequest fails unless the request makes sense; nothing of one that doesn't gets into a label or a path.
func checkRequest(r agentapi.Request) error {
	wants := 0
	for _, wanted := range []bool{r.Lookup != nil, r.Report != nil, r.Ready} {
		if wanted {
			wants++
		}
	}
	switch {
	case wants != 1:
		return errors.New("a request is either a lookup or a report, or asks whether the agent is ready")
	case r.Ready:
		return nil
	case r.Lookup != nil:
		return checkPod(r.Lookup.Namespace, r.Lookup.Name)
	case r.Report.Namespace != "" || r.Report.Name != "": // a container that is no pod has neither
		if err := checkPod(r.Report.Namespace, r.Report.Name); err != nil {
			return err
		}
	}
	if !slices.Contains(attachment.Outcomes, r.Report.Outcome) {
		return fmt.Errorf("outcome %.40q is none of %q", r.Report.Outcome, attachment.Outcomes)
	}
	return nil
}

func checkPod(namespace, name string) error {
	if !mesh.IsName(namespace) || !mesh.IsName(name) {
		return fmt.Errorf("%.300q in %.300q is not a pod's name", name, namespace)
	}
	return nil
}
