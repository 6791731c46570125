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

// namespace is a pod's network namespace, and what the records say it holds. Rules belong to the namespace, records to its
// attachments: each record of an attachment that was programmed says all that the namespace holds.
type namespace struct {
	*call
	ns   *netns.Pod // nil unless entered
	lock *os.File
	// own are the attachment's records: ADD's, and the node agent's if that has repaired the pod.
	own []attachment.Record
	// others are those of the namespace's other attachments, the oldest first.
	others []attachment.Record
	// fresh is whether the namespace is known to have no rules at all.
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

// look reads the records of the namespace, whose ID is empty if it is not known.
func (n *namespace) look(id string) error {
	n.own, n.others = nil, nil
	records, err := n.store.Of(n.key.ContainerID, n.pod.UID)
	for _, r := range records {
		repair := r.Network == attachment.RepairNetwork
		switch {
		case repair && r.Netns != n.netns && (id == "" || r.NamespaceID != id): // of a sandbox that the pod had before
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

// unreadable is the outcome in the place of a record that makes no sense.
const unreadable attachment.Outcome = ""

// programmed is the record of another attachment that was programmed, if there is one.
func (n *namespace) programmed() (attachment.Record, bool) {
	i := slices.IndexFunc(n.others, is(attachment.Programmed))
	if i < 0 {
		return attachment.Record{}, false
	}
	return n.others[i], true
}

// record is the attachment's own.
func (n *namespace) record() attachment.Record {
	if len(n.own) == 0 {
		return attachment.Record{}
	}
	return n.own[0]
}

// leftAlone reports whether all that ever became of the attachment is that it was left alone.
func (n *namespace) leftAlone() bool {
	return !slices.ContainsFunc(n.own, func(r attachment.Record) bool { return r.Outcome != attachment.Skipped || r.Stale != nil })
}

// since is when the attachment was added first; now, if that is unknown.
func (n *namespace) since(now time.Time) time.Time {
	for _, r := range n.own {
		if !r.Time.IsZero() && r.Time.Before(now) {
			now = r.Time
		}
	}
	return now
}

// addresses are the pod's of all attachments, in the order in which these were added.
func (n *namespace) addresses(own attachment.Record) []netip.Addr {
	all := append(slices.Clone(n.others), own)
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
func (n *namespace) settle(record *attachment.Record) error {
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

// rewrite has the other attachments' records, but for those that were left alone, say what the namespace holds.
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

// undoTimeout bounds the removal of what a failed ADD did. The ADD's own deadline may have passed.
const undoTimeout = 5 * time.Second

// undo takes back an ADD that failed. If it can't, the record stays, for DEL.
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

// leave takes what the attachment's records say out of the namespace, and anything if no record tells, unless another
// attachment shares it. It runs in the namespace, which is locked.
func (n *namespace) leave(ctx context.Context, unknown bool) error {
	if r, ok := n.programmed(); ok {
		return n.mend(ctx, r)
	}
	if slices.ContainsFunc(n.others, is(unreadable)) { // the rules may be that attachment's as well
		return nil
	}
	stale := slices.Clone(n.own)
	if unknown {
		stale = append(stale, n.anything()...)
	}
	return backend.Remove(ctx, n.lock, stale...)
}

// mend ends what a killed ADD of this attachment began in a namespace that it shares: either all of it is there, or what
// another attachment's record says is put back.
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
