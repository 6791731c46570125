package cniplugin

import (
	"errors"
	"slices"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// del removes the pod's rules and records. It succeeds without records, API server or namespace, and with an invalid net conf: a
// pod must always be able to end, and its rules end with its namespace at the latest.
func del(c *call) error {
	if c.confErr != nil {
		c.log.Warn("DEL ignores the invalid parts of the net conf", "event", "net-conf-invalid", "reason", c.confErr.Error())
	}
	record, err := c.detach()
	log := c.log
	if c.pod == (pod.ID{}) && record.Pod != "" { // CNI_ARGS don't name it
		log = log.With("pod", record.Pod, "podUID", record.PodUID)
	}
	if err != nil {
		log.Warn("pod deleted, but not all of it could be removed", "event", "del-incomplete", "reason", err.Error())
	} else {
		log.Info("pod deleted", "event", "del-done")
	}
	return nil
}

// detach removes the attachment's rules, unless other attachments share them, and its records, and returns the record. Without a
// record it removes the rules of every mesh, with every backend that the host has.
func (c *call) detach() (attachment.Record, error) {
	n := &namespace{call: c}
	ns, err := netns.Open(c.netns)
	if err == nil {
		defer ns.Close()
		n.ns = ns
		err = n.detach()
	} else {
		if errors.Is(err, netns.ErrGone) {
			err = nil
		}
		err = errors.Join(err, n.look(""), n.unmark())
	}
	return n.record(), errors.Join(err, n.forget())
}

// detach removes the rules from an existing namespace. It does without a state folder that can't be used.
func (n *namespace) detach() (err error) {
	ctx, cancel := n.deadline()
	defer cancel()
	var lockErr error
	n.lock, lockErr = n.ns.Lock(ctx, n.conf.StateDir)
	id, idErr := n.ns.ID()
	err = errors.Join(lockErr, idErr, n.look(id))
	if ctx.Err() == nil && (len(n.own) == 0 || !n.leftAlone()) {
		unknown := len(n.own) == 0 || slices.ContainsFunc(n.own, is(unreadable)) || slices.ContainsFunc(n.own, is(attachment.Allowed))
		err = errors.Join(err, n.ns.Do(func() error { return n.leave(ctx, unknown) }))
	}
	if n.lock != nil && len(n.others) == 0 {
		err = errors.Join(err, n.forget(), n.ns.Forget())
	}
	return err
}

// unmark removes the lock of a namespace that is gone, unless it has other attachments.
func (n *namespace) unmark() error {
	id := n.record().NamespaceID
	if id == "" || len(n.others) > 0 {
		return nil
	}
	return netns.Forget(n.conf.StateDir, id)
}

// anything is what may be in a namespace without a record: rules of the net conf's mesh or of any other.
func (c *call) anything() []attachment.Record {
	dialects := []mesh.Dialect{c.conf.Dialect}
	for _, name := range mesh.Names() {
		d, _ := mesh.Find(name)
		dialects = append(dialects, d)
	}
	var all []rules.Ruleset
	for _, d := range dialects {
		if d.Name != "" { // the net conf may name an unknown mesh
			all = append(all, d.Broadest().Ruleset())
		}
	}
	return backend.Broadest(all)
}
