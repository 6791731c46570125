package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/rules"
)

// check compares the kernel with what ADD programmed and fails with the first difference. Where the state was lost it
// compares with what ADD would program now.
func check(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	record, err := loadRecord(conf, args)
	var p plan
	lost := errors.Is(err, fs.ErrNotExist)
	if lost {
		p, record, err = planned(ctx, conf, args)
	}
	if err != nil {
		return cniError(err)
	}
	if record.Outcome != attachment.Programmed {
		return nil
	}
	ns, err := netns.Open(args.Netns)
	if err != nil {
		return cniError(err)
	}
	defer ns.Close()
	return ns.Do(func() error {
		if lost {
			program, err := p.prepare(ctx, conf)
			if err != nil {
				return cniError(err)
			}
			program.Keep(&record)
		}
		return compare(ctx, record)
	})
}

// loadRecord loads the attachment's state: ADD's, or else the node agent's, of a pod that it has repaired, or else that of
// another interface, as the namespace is one.
func loadRecord(conf Conf, args *skel.CmdArgs) (attachment.Record, error) {
	store := attachment.NewStore(conf.StateDir)
	record, err := store.Load(key(conf, args))
	if !errors.Is(err, fs.ErrNotExist) {
		return record, err
	}
	h := holding{store: store}
	if err := h.look(key(conf, args), podUID(args), args.Netns, ""); err != nil {
		return record, err
	}
	if len(h.own) > 0 {
		return h.own[0], nil
	}
	if other, ok := h.programmed(); ok {
		return other, nil
	}
	return record, err
}

// podUID is the pod's, if the runtime passes it.
func podUID(args *skel.CmdArgs) string {
	id, _ := parseArgs(args.Args) // one that makes no sense has none
	return id.UID
}

// planned is what an ADD would do now, and the state that it would leave.
func planned(ctx context.Context, conf Conf, args *skel.CmdArgs) (plan, attachment.Record, error) {
	if err := parsePrevResult(&conf); err != nil {
		return plan{}, attachment.Record{}, err
	}
	p, err := makePlan(ctx, conf, args, startStages())
	record := p.record(conf, args)
	if err != nil || p.Skip != "" {
		return p, record, err
	}
	h := holding{store: attachment.NewStore(conf.StateDir)}
	if err := h.look(record.Key, record.PodUID, args.Netns, ""); err != nil {
		return p, record, err
	}
	return p, record, p.join(conf, h, record)
}

// compare runs in the pod's namespace.
func compare(ctx context.Context, record attachment.Record) error {
	different, err := backend.Differences(ctx, record)
	if err != nil {
		return cniError(err)
	}
	if len(different) == 0 {
		return nil
	}
	return types.NewError(CodeDifferent, fmt.Sprintf("pod %s: %s", record.Pod, different[0]), fmt.Sprintf("%d differences in all; recreate the pod", len(different)))
}

// del removes the pod's rules and state. It succeeds without state, API server and namespace, and whatever is wrong with
// the net conf: a pod must always be able to end, and its rules end with its namespace at the latest.
func del(args *skel.CmdArgs) error {
	conf, confErr := ParseConf(args.StdinData)
	log, file := openLog(conf)
	defer file.Close()
	if confErr != nil {
		log.Warn("DEL goes on without the parts of the net conf that are wrong", "error", confErr.Error())
	}
	record, err := detach(conf, args)
	level := slog.LevelDebug
	attrs := []slog.Attr{slog.String("verb", "DEL"), slog.String("pod", record.Pod), slog.String("containerID", args.ContainerID), slog.String("netns", args.Netns)}
	if err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	log.LogAttrs(context.Background(), level, "pod deleted", attrs...)
	return nil
}

// detach takes the attachment's rules, unless other attachments share them, and its records out of the node, and returns the
// record. Without one it takes out whatever of any mesh may be there, with every iptables that the host has.
func detach(conf Conf, args *skel.CmdArgs) (attachment.Record, error) {
	h, k := holding{store: attachment.NewStore(conf.StateDir)}, key(conf, args)
	ns, err := netns.Open(args.Netns)
	if err == nil {
		defer ns.Close()
		err = h.detachFrom(ns, conf, args)
	} else {
		if errors.Is(err, netns.ErrGone) {
			err = nil
		}
		err = errors.Join(err, h.look(k, podUID(args), args.Netns, ""), h.unmark(conf))
	}
	return h.record(), errors.Join(err, h.forget(k))
}

// detachFrom takes the rules out of a namespace that is there. Where the state folder is of no use, it does without.
func (h *holding) detachFrom(ns *netns.Pod, conf Conf, args *skel.CmdArgs) error {
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	lock, lockErr := ns.Lock(ctx, conf.StateDir)
	id, idErr := ns.ID()
	err := errors.Join(lockErr, idErr, h.look(key(conf, args), podUID(args), args.Netns, id))
	if ctx.Err() == nil && (len(h.own) == 0 || !h.leftAlone()) {
		unknown := len(h.own) == 0 || slices.ContainsFunc(h.own, is(unreadable)) || slices.ContainsFunc(h.own, is(attachment.Allowed))
		err = errors.Join(err, ns.Do(func() error { return h.leave(ctx, conf, lock, unknown) }))
	}
	if lock != nil && len(h.others) == 0 {
		err = errors.Join(err, h.forget(key(conf, args)), ns.Forget())
	}
	return err
}

// record is the attachment's own.
func (h holding) record() attachment.Record {
	if len(h.own) == 0 {
		return attachment.Record{}
	}
	return h.own[0]
}

// unmark removes the lock of a namespace that is gone after its last attachment.
func (h holding) unmark(conf Conf) error {
	id := h.record().NamespaceID
	if id == "" || len(h.others) > 0 {
		return nil
	}
	return netns.Forget(conf.StateDir, id)
}

// anything is what may be in a namespace without a record: rules of the net conf's mesh or of any other.
func anything(conf Conf) []attachment.Record {
	dialects := []mesh.Dialect{conf.Dialect}
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

// gc drops the state of attachments that are not among the valid ones of this network, and the locks of namespaces that no
// state is about.
func gc(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	store := attachment.NewStore(conf.StateDir)
	keys, err := store.Keys(conf.Name)
	if err != nil {
		return cniError(err)
	}
	var errs []error
	for _, k := range keys {
		if !slices.Contains(conf.ValidAttachments, types.GCAttachment{ContainerID: k.ContainerID, IfName: k.IfName}) {
			errs = append(errs, store.Delete(k))
		}
	}
	if err := errors.Join(append(errs, dropLocks(conf.StateDir, store))...); err != nil {
		return cniError(err)
	}
	return nil
}

func dropLocks(stateDir string, store attachment.Store) error {
	ids, err := netns.Locks(stateDir)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	if err := store.All(func(r attachment.Record, _ error) { used[r.NamespaceID] = true }); err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		if !used[id] {
			errs = append(errs, netns.Forget(stateDir, id))
		}
	}
	return errors.Join(errs...)
}

// status fails with code 50 if an ADD could not be served now. Pods that run are never affected, so code 51 does not
// occur.
func status(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := ready(conf); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "detour can't serve an ADD: "+err.Error(), "")
	}
	return nil
}

func ready(conf Conf) error {
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	if err := backend.Works(ctx, conf.Backend); err != nil {
		return err
	}
	if err := attachment.NewStore(conf.StateDir).Prepare(conf.Name); err != nil {
		return err
	}
	from, err := openSource(conf)
	if err != nil {
		return err
	}
	return from.Ready(ctx, kube.ConfigRef(conf.Dialect.Config))
}
