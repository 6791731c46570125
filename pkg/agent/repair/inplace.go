package repair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/redirect"
)

// programTime bounds the programming of one pod.
const programTime = 10 * time.Second

// programmed is the result of a repair that succeeded.
const programmed = "programmed"

// repairInPlace programs the pod and tells its owner.
func (r *Repairer) repairInPlace(ctx context.Context, f Finding) (result string) {
	log := r.logFor(f.Pod)
	if err := r.program(ctx, f.Pod); err != nil {
		log.Error("unprogrammed pod not repaired", "event", "pod-repair-failed", "reason", f.why(), "error", err.Error())
		r.report(f, "it could not be programmed in place: "+err.Error())
		return "failed"
	}
	log.Info("unprogrammed pod programmed in place", "event", "pod-repaired", "reason", f.why())
	r.Owners.Repaired(f.Pod.AtRuntime(), fmt.Sprintf("The pod is in the mesh (%s) and ran without redirection: %s. It is programmed now; connections that were open bypass the proxy until they end", r.Mesh, f.why()))
	return programmed
}

// program programs a running pod as ADD would have, checks the kernel and writes the record. Unlike ADD, it writes the record
// last: after a crash, the next sweep must find the pod again. On an error nothing is left. It is idempotent. If an ADD let the
// pod start unmeshed, the repair takes over its record; otherwise the agent deletes the record when the pod is gone.
func (r *Repairer) program(ctx context.Context, p nodepod.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	ns, place, err := openNamespaceOf(r.NetnsDir, p.Addresses)
	if err != nil {
		return err
	}
	defer ns.Close()
	lock, err := ns.Lock(ctx, r.StateDir)
	if err != nil {
		return err
	}
	records, err := r.records() // an ADD may have had the lock before
	if err != nil {
		return err
	}
	old, repair := toRepair(records, p)
	if !repair {
		return nil
	}
	if old.Key != (attachment.Key{}) { // records leaves out what the namespace may hold
		if old, err = r.store.Load(old.Key); err != nil {
			return err
		}
	}
	wanted, err := r.Cluster.Decide(ctx, p)
	if err != nil {
		return err
	}
	if wanted.Skip != "" {
		return fmt.Errorf("the mesh does not want the pod any more: %s", wanted.Skip)
	}
	record := r.record(p, place, old)
	if record.NamespaceID, err = ns.ID(); err != nil {
		return err
	}
	return ns.Do(func() error { return r.apply(ctx, lock, wanted, record, compare) })
}

// apply programs what is wanted, checks it and writes the record; after an error it removes everything. It runs in the pod's
// namespace.
func (r *Repairer) apply(ctx context.Context, lock *os.File, wanted decision.Decision, record attachment.Record, check func(context.Context, attachment.Record) error) error {
	prepared, err := backend.Prepare(ctx, backend.Auto, wanted.Rules, wanted.Families)
	if err != nil {
		return err
	}
	prepared.Keep(&record)
	record.Asked = redirect.AskedOf(wanted.Policy)
	if err := prepared.Apply(ctx, lock, record.Stale...); err != nil {
		return err
	}
	if err = check(ctx, record); err == nil {
		record.Stale = nil
		err = r.store.Save(record)
	}
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), programTime)
	defer cancel()
	return errors.Join(err, backend.Remove(undo, lock, record))
}

// compare fails with the first difference between the kernel and the record.
func compare(ctx context.Context, record attachment.Record) error {
	different, err := backend.Differences(ctx, record)
	if err == nil && len(different) > 0 {
		err = fmt.Errorf("the kernel differs from what was programmed (%d times): %s", len(different), different[0])
	}
	return err
}

// record is the repair's. It has the key of old, if ADD left a record of the pod.
func (r *Repairer) record(p nodepod.Pod, at place, old attachment.Record) attachment.Record {
	uid := p.AtRuntime().UID
	record := attachment.Record{
		Key:     attachment.RepairKey(uid, at.link),
		Netns:   at.path,
		Pod:     p.String(),
		PodUID:  uid,
		Mesh:    r.Mesh,
		Outcome: attachment.Programmed,
		Time:    time.Now().UTC(),
	}
	if old.Key != (attachment.Key{}) {
		record.Key, record.Netns, record.Addresses, record.Time, record.Stale = old.Key, old.Netns, old.Addresses, old.Time, old.Traces()
	}
	return record
}
