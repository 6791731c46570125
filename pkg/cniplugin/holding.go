package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
)

// holding is what the records say of one network namespace. Rules belong to the namespace, records to its attachments: each
// record of an attachment that was programmed says all that the namespace holds.
type holding struct {
	store attachment.Store
	// own are the attachment's records: ADD's, and the node agent's if that has repaired the pod.
	own []attachment.Record
	// others are those of the namespace's other attachments, the oldest first.
	others []attachment.Record
	// fresh is whether the namespace is known to have no rules at all.
	fresh bool
}

// look reads the records of the namespace at path, whose ID is empty if it is not known, for the attachment k of the pod with
// this UID, if it is one.
func (h *holding) look(k attachment.Key, uid, path, id string) error {
	h.own, h.others = nil, nil
	records, err := h.store.Of(k.ContainerID, uid)
	for _, r := range records {
		repair := r.Network == attachment.RepairNetwork
		switch {
		case repair && r.Netns != path && (id == "" || r.NamespaceID != id): // of a sandbox that the pod had before
		case r.Key == k, repair && r.IfName == k.IfName:
			h.own = append(h.own, r)
		default:
			h.others = append(h.others, r)
		}
	}
	return err
}

func is(o attachment.Outcome) func(attachment.Record) bool {
	return func(r attachment.Record) bool { return r.Outcome == o }
}

// unreadable is the outcome in the place of a record that makes no sense.
const unreadable attachment.Outcome = ""

// programmed is the record of another attachment that was programmed, if there is one.
func (h holding) programmed() (attachment.Record, bool) {
	i := slices.IndexFunc(h.others, is(attachment.Programmed))
	if i < 0 {
		return attachment.Record{}, false
	}
	return h.others[i], true
}

// shared reports whether the rules may be another attachment's as well.
func (h holding) shared() bool {
	return slices.ContainsFunc(h.others, is(attachment.Programmed)) || slices.ContainsFunc(h.others, is(unreadable))
}

// leftAlone reports whether all that ever became of the attachment is that it was left alone.
func (h holding) leftAlone() bool {
	return !slices.ContainsFunc(h.own, func(r attachment.Record) bool { return r.Outcome != attachment.Skipped || r.Stale != nil })
}

// since is when the attachment was added first; now, if that is unknown.
func (h holding) since(now time.Time) time.Time {
	for _, r := range h.own {
		if !r.Time.IsZero() && r.Time.Before(now) {
			now = r.Time
		}
	}
	return now
}

// addresses are the pod's of all attachments, in the order in which these were added.
func (h holding) addresses(own attachment.Record) []netip.Addr {
	all := append(slices.Clone(h.others), own)
	slices.SortStableFunc(all, func(a, b attachment.Record) int { return a.Time.Compare(b.Time) })
	var out []netip.Addr
	for _, r := range all {
		for _, a := range r.Addresses {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// stale is what the namespace may hold before an ADD. Where no record tells, that is anything, unless the namespace is fresh.
func (h holding) stale(conf Conf) []attachment.Record {
	all := slices.Concat(h.own, h.others)
	known := slices.ContainsFunc(h.own, is(attachment.Skipped)) || slices.ContainsFunc(all, is(attachment.Programmed))
	var stale []attachment.Record
	if (!known || slices.ContainsFunc(all, is(unreadable))) && !h.fresh {
		stale = append(stale, anything(conf)...)
	}
	for _, r := range all {
		stale = append(stale, r.Traces()...)
	}
	return stale
}

// program programs what the plan says in the place of all that the namespace may hold, and keeps it as the state of all its
// attachments. What may be there is written ahead as well, so that whatever comes after a kill can mend it. An error leaves
// what another attachment's ADD programmed, or else nothing. It runs in the namespace, which is locked.
func (h holding) program(ctx context.Context, conf Conf, lock *os.File, p *plan, record *attachment.Record, took *stages) error {
	program, err := p.prepare(ctx, conf)
	if err != nil {
		return err
	}
	stale := h.stale(conf)
	took.done("enter")
	run := func(program *backend.Program) error {
		program.Keep(record)
		record.Stale = replaced(stale, *record)
		if err := h.store.Save(*record); err != nil {
			return err
		}
		took.done("save")
		defer took.done("apply")
		return program.Apply(ctx, lock, record.Stale...)
	}
	err = run(program)
	if err != nil && ctx.Err() == nil {
		if other := program.Fallback(ctx); other != nil {
			p.Warnings = append(p.Warnings, "nftables was taken instead of iptables, which does not work here: "+err.Error())
			stale = append(stale, record.Traces()...)
			err = run(other)
		}
	}
	if err == nil {
		err = h.settle(record)
	}
	if err != nil {
		return errors.Join(err, h.undo(ctx, lock, *record))
	}
	return nil
}

// replaced is what of stale the record does not say itself, each thing once.
func replaced(stale []attachment.Record, record attachment.Record) []attachment.Record {
	record.Stale = nil
	seen := record.Traces()
	var out []attachment.Record
	for _, s := range stale {
		if !slices.ContainsFunc(seen, func(r attachment.Record) bool { return reflect.DeepEqual(r, s) }) {
			seen, out = append(seen, s), append(out, s)
		}
	}
	return out
}

// settle has each record of the namespace say what it holds now. As a rule there is one, which says so already.
func (h holding) settle(record *attachment.Record) error {
	if err := h.rewrite(*record); err != nil {
		return err
	}
	for _, r := range h.own {
		if r.Key != record.Key {
			if err := h.store.Delete(r.Key); err != nil {
				return err
			}
		}
	}
	if record.Stale == nil {
		return nil
	}
	record.Stale = nil
	return h.store.Save(*record)
}

// rewrite has the other attachments' records, but for those that were left alone, say what the namespace holds.
func (h holding) rewrite(holds attachment.Record) error {
	for _, old := range h.others {
		if old.Outcome == attachment.Skipped {
			continue
		}
		r := holds
		r.Key, r.Addresses, r.Time, r.Stale = old.Key, old.Addresses, old.Time, nil
		if err := h.store.Save(r); err != nil {
			return err
		}
	}
	return nil
}

// undoTimeout bounds what becomes of a failed ADD; its own deadline may have passed.
const undoTimeout = 5 * time.Second

// undo takes back an ADD that failed. If it can't, the record stays, for DEL.
func (h holding) undo(ctx context.Context, lock *os.File, failed attachment.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if r, ok := h.programmed(); ok {
		return errors.Join(backend.Restore(ctx, lock, r, failed), h.rewrite(r), h.forget(failed.Key))
	}
	if err := backend.Remove(ctx, lock, failed); err != nil {
		failed.Outcome, failed.Reason = attachment.Allowed, "it could not be programmed, and not all of it could be removed"
		return errors.Join(err, h.store.Save(failed))
	}
	return h.forget(failed.Key)
}

// forget deletes the attachment's records.
func (h holding) forget(k attachment.Key) error {
	errs := []error{h.store.Delete(k)}
	for _, r := range h.own {
		errs = append(errs, h.store.Delete(r.Key))
	}
	return errors.Join(errs...)
}

// leave takes what the attachment's records say out of the namespace, and anything if no record tells, unless another
// attachment shares it. It runs in the namespace, which is locked.
func (h holding) leave(ctx context.Context, conf Conf, lock *os.File, unknown bool) error {
	if r, ok := h.programmed(); ok {
		return h.mend(ctx, lock, r)
	}
	if h.shared() {
		return nil
	}
	stale := slices.Clone(h.own)
	if unknown {
		stale = append(stale, anything(conf)...)
	}
	return backend.Remove(ctx, lock, stale...)
}

// mend ends what a killed ADD of this attachment began in a namespace that it shares: either all of it is there, or what
// another attachment's record says is put back.
func (h holding) mend(ctx context.Context, lock *os.File, other attachment.Record) error {
	i := slices.IndexFunc(h.own, func(r attachment.Record) bool { return r.Stale != nil })
	if i < 0 {
		return nil
	}
	began := h.own[i]
	holds := other
	if different, err := backend.Differences(ctx, began); err == nil && len(different) == 0 {
		holds = began
	}
	if err := backend.Restore(ctx, lock, holds, began, other); err != nil {
		return fmt.Errorf("put back what %s has in pod %s: %w", other.IfName, other.Pod, err)
	}
	return h.rewrite(holds)
}
