package agent

import (
	"math"
	"slices"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
)

// classes are why an ADD did not program its pod although it should have, by CNI error code. They are labels of a metric.
var classes = map[uint]string{
	4:                    "arguments",    // CNI_ARGS are invalid
	6:                    "prev-result",  // prevResult is invalid
	7:                    "net-conf",     // the net conf is invalid
	8:                    "namespace",    // there is no network namespace, or it is the host's
	11:                   "api-server",   // no answer in time
	50:                   "unavailable",  // no ADD can be served now
	agentapi.CodeRefused: "pod-refused",  // the pod or the mesh's configuration has to change
	999:                  "plugin-error", // anything else
}

// reasonClass classifies why an ADD ended as it did.
func reasonClass(r agentapi.Report) string {
	if r.Outcome == attachment.Programmed || r.Outcome == attachment.Skipped {
		return "none"
	}
	if class, ok := classes[r.Code]; ok {
		return class
	}
	return "other"
}

// report counts what became of an ADD and tells the pod's owner what only the owner can mend.
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
	if r.Code == agentapi.CodeRefused && r.Namespace != "" {
		a.events.Refused(r.ID, r.Reason)
	}
}
