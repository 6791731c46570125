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
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/pod"
)

// finding is a meshed pod that runs without redirection. It has no rules, which may be long: there may be many findings.
type finding struct {
	pod     entry
	old     attachment.Record // of an ADD that let it start unmeshed; without a key if there was none
	refused string            // why its mesh can't say what to program, "" if it can
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
	found, err := a.unprogrammed(ctx, time.Now())
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

// unprogrammed returns the meshed pods that have been running for a while and that no ADD has programmed or left alone. The
// pods are listed before the records: an ADD that ends in between counts.
func (a *Agent) unprogrammed(ctx context.Context, now time.Time) ([]finding, error) {
	pods := a.pods.list()
	records, err := a.records()
	if err != nil {
		return nil, err
	}
	a.dropOldRepairs(records, pods)
	var found []finding
	for _, e := range pods {
		old, repair := toRepair(records, e)
		if !repair || !a.candidate(e, now) {
			continue
		}
		decision, err := a.decide(ctx, e)
		switch {
		case errors.Is(err, errUnknown):
			a.log.Warn("it is not known whether a pod runs without redirection", "pod", e.String(), "error", err.Error())
		case err != nil:
			found = append(found, finding{pod: e, old: old, refused: clip(err.Error(), eventLength)})
		case decision.Skip == "":
			found = append(found, finding{pod: e, old: old})
		}
	}
	slices.SortFunc(found, func(x, y finding) int { return x.pod.since.Compare(y.pod.since) })
	return found, nil
}

// toRepair is attachment.ToRepair of the pod's records.
func toRepair(records []attachment.Record, e entry) (old attachment.Record, repair bool) {
	var ofPod []attachment.Record
	for _, r := range records {
		if isOf(r, e) {
			ofPod = append(ofPod, r)
		}
	}
	return attachment.ToRepair(ofPod)
}

// candidate reports whether the pod's ADD is over for certain. The status of a pod that the node's last start has ended
// says Running until the kubelet looks: only what was started since then runs.
func (a *Agent) candidate(e entry, now time.Time) bool {
	return !e.hostNetwork && !e.deleting && e.phase == "Running" &&
		e.since.After(a.booted) && now.Sub(e.since) >= a.timing.settle &&
		a.conf.Excluded(e.namespace) == ""
}

// bootTime is when the node was started.
func bootTime() time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// errUnknown is why it can't be decided what the mesh wants of a pod.
var errUnknown = errors.New("the pod or its configuration is not known")

// decide says what the mesh wants of the pod. The error is errUnknown or the mesh's refusal.
func (a *Agent) decide(ctx context.Context, e entry) (decision.Decision, error) {
	config := a.configOf(e)
	if !config.known {
		return decision.Decision{}, fmt.Errorf("%w: the cache does not have its configuration %s yet", errUnknown, e.config)
	}
	data, err := a.podOf(ctx, e)
	if err != nil {
		return decision.Decision{}, fmt.Errorf("%w: %w", errUnknown, err)
	}
	return a.conf.Decide(decision.Input{
		ID: pod.ID{Namespace: e.namespace, Name: e.name}, Pod: data, Config: config.json, ConfigAbsent: config.absent, Addresses: e.addresses,
	})
}

// podOf returns the pod's JSON, which the API server is asked for where it was too long to be kept.
func (a *Agent) podOf(ctx context.Context, e entry) ([]byte, error) {
	if e.json != nil {
		return e.json, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.timing.lookup)
	defer cancel()
	objects, err := a.lookupLive(ctx, e.id())
	return objects.Pod, err
}

// isOf reports whether the record is the pod's. A runtime that passes no UID leaves the name.
func isOf(r attachment.Record, e entry) bool {
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
			r.Payload, r.Stale = nil, nil // long, and not needed here
			r.Reason = clip(r.Reason, eventLength)
			records = append(records, r)
		}
	})
	return records, err
}

// dropOldRepairs deletes the records that InPlace wrote of pods that are gone: no CNI DEL does.
func (a *Agent) dropOldRepairs(records []attachment.Record, pods []entry) {
	for _, r := range records {
		if r.Network == attachment.RepairNetwork && !slices.ContainsFunc(pods, func(e entry) bool { return isOf(r, e) }) {
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
