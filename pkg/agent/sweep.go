package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// finding is a meshed pod that runs without redirection.
type finding struct {
	pod      entry
	rules    rules.Ruleset
	families []rules.Family
	refused  error // why its mesh can't say what to program
}

// sweepAlways looks for unprogrammed pods until ctx ends.
func (a *Agent) sweepAlways(ctx context.Context) {
	for ctx.Err() == nil {
		wait := a.timing.check
		if a.pods.isSynced() && a.config.get().known {
			wait = a.timing.sweep
			if err := a.sweep(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("unprogrammed pods could not be looked for", "error", err.Error())
			}
		}
		pause(ctx, wait)
	}
}

// sweep finds and repairs the unprogrammed pods once.
func (a *Agent) sweep(ctx context.Context) error {
	found, err := a.unprogrammed(time.Now())
	if err != nil {
		return err
	}
	left := len(found)
	a.metrics.unprogrammed.Set(float64(left))
	for _, f := range found {
		if ctx.Err() == nil && a.repair(ctx, f) {
			left--
		}
	}
	a.metrics.unprogrammed.Set(float64(left))
	a.told = map[string]bool{}
	for _, f := range found {
		a.told[f.pod.uid] = true
	}
	return nil
}

// unprogrammed returns the meshed pods that have been running for a while and have no attachment record. The pods are
// listed before the records: an ADD that ends in between counts.
func (a *Agent) unprogrammed(now time.Time) ([]finding, error) {
	pods := a.pods.list()
	records, err := a.records()
	if err != nil {
		return nil, err
	}
	a.dropOldRepairs(records, pods)
	var found []finding
	for _, e := range pods {
		if !a.candidate(e, now) || slices.ContainsFunc(records, func(r attachment.Record) bool { return ofPod(r, e) }) {
			continue
		}
		config := a.configOf(e)
		if !config.known {
			continue // the next look may know it
		}
		f, meshed, err := a.find(e, config.json)
		if err != nil {
			return nil, err
		}
		if meshed {
			found = append(found, f)
		}
	}
	slices.SortFunc(found, func(x, y finding) int { return x.pod.since.Compare(y.pod.since) })
	return found, nil
}

// candidate reports whether the pod's ADD is over for certain. The status of a pod that the node's last start has ended
// says Running until the kubelet looks: only what was started since then runs.
func (a *Agent) candidate(e entry, now time.Time) bool {
	return !e.hostNetwork && !e.deleting && e.phase == "Running" &&
		e.since.After(a.booted) && now.Sub(e.since) >= a.timing.settle &&
		!slices.Contains(a.conf.ExcludeNamespaces, e.namespace)
}

// bootTime is when the node was started.
func bootTime() time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// find says what the mesh wants of a pod that has no record.
func (a *Agent) find(e entry, config []byte) (f finding, meshed bool, err error) {
	facts, err := pod.Parse(e.json)
	if err != nil {
		return finding{}, false, fmt.Errorf("pod %s: %w", e, err)
	}
	f.pod = e
	var decision mesh.Decision
	decision, f.refused = a.conf.Dialect.Decide(mesh.Input{
		Pod: facts, Config: config, Addresses: e.addresses,
		DirectInit: slices.Contains(a.conf.DirectInit, e.namespace),
	})
	if f.refused == nil && decision.Skip == "" {
		f.rules, f.families = rules.Build(decision.Policy), decision.Families
	}
	return f, decision.Skip == "", nil
}

// ofPod reports whether the record is the pod's. A runtime that passes no UID leaves the name.
func ofPod(r attachment.Record, e entry) bool {
	if r.PodUID == "" {
		return r.Pod == e.String()
	}
	return e.hasUID(r.PodUID)
}

// records returns the attachment records of all networks. One that makes no sense is none: its pod counts as
// unprogrammed.
func (a *Agent) records() ([]attachment.Record, error) {
	var records []attachment.Record
	err := a.store.All(func(r attachment.Record, err error) {
		switch {
		case err != nil:
			a.log.Warn("an attachment record makes no sense", "error", err.Error())
		case a.conf.Repair == InPlace && r.Network == attachment.RepairNetwork && !exists(r.Netns):
			a.dropRecord(r) // the runtime has given the pod another namespace
		default:
			r.Rules, r.Table = nil, "" // long, and not needed here
			records = append(records, r)
		}
	})
	return records, err
}

// dropOldRepairs deletes the records that InPlace wrote of pods that are gone: no CNI DEL does.
func (a *Agent) dropOldRepairs(records []attachment.Record, pods []entry) {
	for _, r := range records {
		if r.Network == attachment.RepairNetwork && !slices.ContainsFunc(pods, func(e entry) bool { return ofPod(r, e) }) {
			a.dropRecord(r)
		}
	}
}

func (a *Agent) dropRecord(r attachment.Record) {
	if err := a.store.Delete(r.Key); err != nil {
		a.log.Warn("an attachment record could not be deleted", "pod", r.Pod, "error", err.Error())
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
