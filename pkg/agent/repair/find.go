package repair

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/attachment"
)

// ErrUnknown says that a decision about a pod is impossible: the pod or its mesh's configuration is not known.
var ErrUnknown = errors.New("the pod or its configuration is not known")

// Finding is a meshed pod that runs without redirection. It has no rules, as there may be many findings.
type Finding struct {
	Pod     nodepod.Pod
	Old     attachment.Record // of the ADD that let it start unmeshed; without a key if there was none
	Refused string            // why the mesh refuses the pod, "" if it does not
}

// why says how the pod came to run without redirection.
func (f Finding) why() string {
	if f.Old.Outcome != attachment.Allowed {
		return "it was started without detour"
	}
	return "detour could not program it and onError is allow (" + f.Old.Reason + ")"
}

// Find returns the meshed pods that have been running for a while and that no ADD has programmed or skipped, the oldest first.
// It lists the pods before the records: an ADD that ends in between counts.
func (r *Repairer) Find(ctx context.Context, now time.Time) ([]Finding, error) {
	pods := r.Cluster.Pods()
	records, err := r.records()
	if err != nil {
		return nil, err
	}
	r.dropOldRepairs(records, pods)
	var found []Finding
	for _, p := range pods {
		old, repair := toRepair(records, p)
		if !repair || !r.candidate(p, now) {
			continue
		}
		decision, err := r.Cluster.Decide(ctx, p)
		switch {
		case errors.Is(err, ErrUnknown):
			r.logFor(p).Warn("not known whether the pod runs without redirection", "event", "pod-unknown", "error", err.Error())
		case err != nil:
			found = append(found, Finding{Pod: p, Old: old, Refused: short(err.Error())})
		case decision.Skip == "":
			found = append(found, Finding{Pod: p, Old: old})
		}
	}
	slices.SortFunc(found, func(x, y Finding) int { return x.Pod.Since.Compare(y.Pod.Since) })
	return found, nil
}

// candidate reports whether the pod's ADD is certainly over. After a reboot, a pod's status says Running until the kubelet looks:
// only pods that started since then run.
func (r *Repairer) candidate(p nodepod.Pod, now time.Time) bool {
	return !p.HostNetwork && !p.Deleting && p.Phase == "Running" &&
		p.Since.After(r.Booted) && now.Sub(p.Since) >= r.Timing.Settle
}

// bootTime is when the node booted.
func bootTime() time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// records returns the attachment records of all networks. It leaves out unreadable ones: their pods count as unprogrammed.
func (r *Repairer) records() ([]attachment.Record, error) {
	var records []attachment.Record
	err := r.store.All(func(record attachment.Record, err error) {
		switch {
		case err != nil:
			r.Log.Warn("attachment record unreadable", "event", "record-invalid", "error", err.Error())
		case r.Mode == InPlace && record.Network == attachment.RepairNetwork && !exists(record.Netns):
			r.drop(record) // the runtime has given the pod another namespace
		default:
			record.Payload, record.Stale = nil, nil // long, and not needed here
			record.Reason = short(record.Reason)
			records = append(records, record)
		}
	})
	return records, err
}

// toRepair is attachment.ToRepair of the pod's records.
func toRepair(records []attachment.Record, p nodepod.Pod) (old attachment.Record, repair bool) {
	var ofPod []attachment.Record
	for _, r := range records {
		if isOf(r, p) {
			ofPod = append(ofPod, r)
		}
	}
	return attachment.ToRepair(ofPod)
}

// isOf reports whether the record is the pod's: by its name if the runtime passed no UID.
func isOf(r attachment.Record, p nodepod.Pod) bool {
	if r.PodUID == "" {
		return r.Pod == p.String()
	}
	return p.HasUID(r.PodUID)
}

// dropOldRepairs deletes InPlace's records of pods that are gone: no CNI DEL does.
func (r *Repairer) dropOldRepairs(records []attachment.Record, pods []nodepod.Pod) {
	for _, record := range records {
		if record.Network == attachment.RepairNetwork && !slices.ContainsFunc(pods, func(p nodepod.Pod) bool { return isOf(record, p) }) {
			r.drop(record)
		}
	}
}

func (r *Repairer) drop(record attachment.Record) {
	if err := r.store.Delete(record.Key); err != nil {
		r.Log.Warn("attachment record not deleted", "event", "record-not-deleted", "pod", record.Pod, "error", err.Error())
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// short cuts a reason, which may be megabytes long, and shares no memory with it.
func short(reason string) string {
	const most = 1024
	return strings.Clone(reason[:min(len(reason), most)])
}
