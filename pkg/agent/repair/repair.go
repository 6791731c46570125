// Package repair finds the meshed pods of a node that run without redirection, and reports, evicts or programs them. It writes
// nothing on the host but, for InPlace, rules in pods' network namespaces and attachment records.
package repair

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/pod"
)

// Mode says what to do with a meshed pod that runs without redirection.
type Mode string

// The modes.
const (
	Report  Mode = "report"   // write an Event
	Evict   Mode = "evict"    // evict it, so that its controller replaces it; without a controller, write an Event
	InPlace Mode = "in-place" // program it; connections that are open stay as they are
)

// ParseMode reads the value of an option.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Report, Evict, InPlace:
		return m, nil
	}
	return "", fmt.Errorf("repair: %q is none of report, evict, in-place", s)
}

// Cluster is what the agent knows of its node's pods.
type Cluster interface {
	// Known reports whether all pods and the mesh's configuration are known.
	Known() bool
	Pods() []nodepod.Pod
	// Decide says what the mesh wants of the pod. The error is ErrUnknown or the mesh's refusal.
	Decide(context.Context, nodepod.Pod) (decision.Decision, error)
}

// Owners tells a pod's owner what happens to it.
type Owners interface {
	Unprogrammed(p pod.ID, message string)
	Repaired(p pod.ID, message string)
}

// Config is what a Repairer is made of.
type Config struct {
	Mode Mode
	Mesh string // its name
	// StateDir is the plugin's, NetnsDir where the runtime keeps the pods' network namespaces.
	StateDir, NetnsDir string
	Cluster            Cluster
	Owners             Owners
	// Create posts an eviction to a path of the API server.
	Create       func(ctx context.Context, path string, eviction any) error
	Unprogrammed prometheus.Gauge       // pods that run without redirection
	Repairs      *prometheus.CounterVec // by mode and result
	Log          *slog.Logger
	Timing       Timing
	// Booted is when the node booted: containers that started before no longer run. The kernel's word is the default.
	Booted time.Time
}

// Timing says how long the repair waits.
type Timing struct {
	Sweep  time.Duration // between searches
	Check  time.Duration // between looks whether the cluster is known
	Settle time.Duration // a pod must have run that long to count
	Evict  time.Duration // between evictions
}

// Repairer repairs one node's pods. It is for one goroutine.
type Repairer struct {
	Config
	store attachment.Store
	told  map[string]bool // UIDs that the last sweep found
}

// New returns a repairer that has not looked yet.
func New(c Config) *Repairer {
	if c.Booted.IsZero() {
		c.Booted = bootTime()
	}
	return &Repairer{Config: c, store: attachment.NewStore(c.StateDir)}
}

// Run searches for unprogrammed pods until ctx ends.
func (r *Repairer) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := r.Timing.Check
		if r.Cluster.Known() {
			wait = r.Timing.Sweep
			if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
				r.Log.Warn("search for unprogrammed pods failed", "event", "sweep-failed", "error", err.Error())
			}
		}
		pause(ctx, wait)
	}
}

// sweep finds and repairs the unprogrammed pods once.
func (r *Repairer) sweep(ctx context.Context) error {
	found, err := r.Find(ctx, time.Now())
	if err != nil {
		return err
	}
	left := len(found)
	r.Unprogrammed.Set(float64(left))
	for _, f := range found {
		if ctx.Err() == nil && r.repair(ctx, f) {
			left--
		}
	}
	r.Unprogrammed.Set(float64(left))
	r.told = map[string]bool{}
	for _, f := range found {
		r.told[f.Pod.UID] = true
	}
	return nil
}

// repair does what the mode says and reports whether the pod is programmed now. The next sweep tries again what failed.
func (r *Repairer) repair(ctx context.Context, f Finding) bool {
	mode, hint := r.Mode, "recreate it"
	switch {
	case f.Refused != "":
		mode, hint = Report, f.Refused
	case mode == Evict && f.Pod.MirrorOf != "":
		mode, hint = Report, "it is a static pod: restart it on its node"
	case mode == Evict && !f.Pod.Controlled:
		mode, hint = Report, "no controller would replace it after an eviction: recreate it"
	}
	result := "reported"
	switch mode {
	case Evict:
		result = r.evict(ctx, f)
	case InPlace:
		result = r.repairInPlace(ctx, f)
	default:
		r.report(f, hint)
	}
	r.Repairs.WithLabelValues(string(mode), result).Inc()
	return result == programmed
}

// report tells the pod's owner, and the log unless the last sweep found the pod too.
func (r *Repairer) report(f Finding, hint string) {
	if !r.told[f.Pod.UID] {
		r.logFor(f.Pod).Warn("meshed pod runs without redirection", "event", "pod-unprogrammed", "reason", f.why(), "hint", hint)
	}
	r.Owners.Unprogrammed(f.Pod.AtRuntime(), fmt.Sprintf("The pod is in the mesh (%s), but its connections bypass the proxy: %s; %s", r.Mesh, f.why(), hint))
}

func (r *Repairer) logFor(p nodepod.Pod) *slog.Logger {
	return r.Log.With("pod", p.String(), "podUID", p.UID)
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
