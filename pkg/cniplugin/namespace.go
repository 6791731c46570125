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
	"github.com/detour-cni/detour/pkg/netns"
)

// namespace is a pod's network namespace and the records about it. Rules belong to the namespace, records to its attachments: the
// record of every programmed attachment lists all that the namespace holds.
type namespace struct {
	*call
	ns   *netns.Pod // nil unless entered
	lock *os.File
	// own are the attachment's records: ADD's, and the node agent's if it has repaired the pod.
	own []attachment.Record
	// others are the records of the namespace's other attachments, oldest first.
	others []attachment.Record
	// fresh is true if the namespace certainly has no rules.
	fresh bool
}

// enter opens and locks the call's namespace.
func (c *call) enter(ctx context.Context) (*namespace, error) {
	n := &namespace{call: c}
	return n, n.enter(ctx)
}

func (n *namespace) enter(ctx context.Context) (err error) {
	if n.ns, err = netns.Open(n.netns); err != nil {
		return err
	}
	if n.lock, err = n.ns.Lock(ctx, n.conf.StateDir); err != nil {
		n.ns.Close()
	}
	return err
}

// look reads the namespace's records. id is the namespace's, or empty if unknown.
func (n *namespace) look(id string) error {
	n.own, n.others = nil, nil
	records, err := n.store.Of(n.key.ContainerID, n.pod.UID)
	for _, r := range records {
		if !backend.Knows(r) { // of a later version
			r.Outcome, r.Families, r.Stale = unreadable, nil, nil
		}
		repair := r.Network == attachment.RepairNetwork
		switch {
		case repair && r.Netns != n.netns && (id == "" || r.NamespaceID != id): // of an earlier sandbox of the pod
		case r.Key == n.key, repair && r.IfName == n.key.IfName:
			n.own = append(n.own, r)
		default:
			n.others = append(n.others, r)
		}
	}
	return err
}

func is(o attachment.Outcome) func(attachment.Record) bool {
	return func(r attachment.Record) bool { return r.Outcome == o }
}

// unreadable is the outcome of a record that can't be read, or that only a later version understands.
const unreadable attachment.Outcome = ""

// programmed returns the record of another attachment that was programmed, if there is one.
func (n *namespace) programmed() (attachment.Record, bool) {
	i := slices.IndexFunc(n.others, is(attachment.Programmed))
	if i < 0 {
		return attachment.Record{}, false
	}
	return n.others[i], true
}

// record returns the attachment's own record, or an empty one.
func (n *namespace) record() attachment.Record {
	if len(n.own) == 0 {
		return attachment.Record{}
	}
	return n.own[0]
}

// leftAlone reports whether every ADD has left the attachment alone.
func (n *namespace) leftAlone() bool {
	return !slices.ContainsFunc(n.own, func(r attachment.Record) bool { return r.Outcome != attachment.Skipped || r.Stale != nil })
}

// since returns when the attachment was first added, or now if that is unknown.
func (n *namespace) since(now time.Time) time.Time {
	for _, r := range n.own {
		if !r.Time.IsZero() && r.Time.Before(now) {
			now = r.Time
		}
	}
	return now
}

// addresses returns the addresses of all attachments, in the order of their first ADDs.
func (n *namespace) addresses(own attachment.Record) []netip.Addr {
	return attachment.Addresses(append(slices.Clone(n.others), own))
}

// stale returns what the namespace may hold before an ADD: anything, if no record says so and the namespace is not fresh.
func (n *namespace) stale() []attachment.Record {
	all := slices.Concat(n.own, n.others)
	known := slices.ContainsFunc(n.own, is(attachment.Skipped)) || slices.ContainsFunc(all, is(attachment.Programmed))
	var stale []attachment.Record
	if (!known || slices.ContainsFunc(all, is(unreadable))) && !n.fresh {
		stale = append(stale, n.anything()...)
	}
	for _, r := range all {
		stale = append(stale, r.Traces()...)
	}
	return stale
}

// onlyStale returns each entry of stale that the record itself does not cover, once.
func onlyStale(stale []attachment.Record, record attachment.Record) []attachment.Record {
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

// syncRecords makes every record of the namespace list what it holds now. Usually there is only record, which does so already.
func (n *namespace) syncRecords(record *attachment.Record) error {
	if err := n.rewrite(*record); err != nil {
		return err
	}
	for _, r := range n.own {
		if r.Key != record.Key {
			if err := n.store.Delete(r.Key); err != nil {
				return err
			}
		}
	}
	if record.Stale == nil {
		return nil
	}
	record.Stale = nil
	return n.store.Save(*record)
}

// rewrite makes the records of the other attachments list what the namespace holds, except for those left alone.
func (n *namespace) rewrite(holds attachment.Record) error {
	for _, old := range n.others {
		if old.Outcome == attachment.Skipped {
			continue
		}
		r := holds
		r.Key, r.Addresses, r.Time, r.Stale = old.Key, old.Addresses, old.Time, nil
		if err := n.store.Save(r); err != nil {
			return err
		}
	}
	return nil
}

// undoTimeout bounds undo. The ADD's own deadline may have passed by then.
const undoTimeout = 5 * time.Second

// undo reverts a failed ADD. If that fails too, the record stays for DEL.
func (n *namespace) undo(ctx context.Context, failed attachment.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if r, ok := n.programmed(); ok {
		return errors.Join(backend.Restore(ctx, n.lock, r, failed), n.rewrite(r), n.forget())
	}
	if err := backend.Remove(ctx, n.lock, failed); err != nil {
		failed.Outcome, failed.Reason = attachment.Allowed, "it could not be programmed, and not all of it could be removed"
		return errors.Join(err, n.store.Save(failed))
	}
	return n.forget()
}

// forget deletes the attachment's records.
func (n *namespace) forget() error {
	errs := []error{n.store.Delete(n.key)}
	for _, r := range n.own {
		errs = append(errs, n.store.Delete(r.Key))
	}
	return errors.Join(errs...)
}

// leave removes what the attachment's records list, and anything else of detour's if unknown, unless another attachment needs it.
// It runs in the namespace and under its lock.
func (n *namespace) leave(ctx context.Context, unknown bool) error {
	if r, ok := n.programmed(); ok {
		return n.mend(ctx, r)
	}
	if slices.ContainsFunc(n.others, is(unreadable)) { // the rules may be that attachment's too
		return nil
	}
	stale := slices.Clone(n.own)
	if unknown {
		stale = append(stale, n.anything()...)
	}
	return backend.Remove(ctx, n.lock, stale...)
}

// mend completes what a killed ADD of this attachment began in a shared namespace: if not all of it is there, mend restores what
// the other attachment's record lists.
func (n *namespace) mend(ctx context.Context, other attachment.Record) error {
	i := slices.IndexFunc(n.own, func(r attachment.Record) bool { return r.Stale != nil })
	if i < 0 {
		return nil
	}
	began := n.own[i]
	holds := other
	if different, err := backend.Differences(ctx, began); err == nil && len(different) == 0 {
		holds = began
	}
	if err := backend.Restore(ctx, n.lock, holds, began, other); err != nil {
		return fmt.Errorf("put back what %s has in pod %s: %w", other.IfName, other.Pod, err)
	}
	return n.rewrite(holds)
}
