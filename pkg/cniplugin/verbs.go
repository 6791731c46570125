package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/iptables"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/redirect"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/verify"
)

// check compares the kernel with what ADD programmed and fails with the first difference. Where the state was lost it
// compares with what ADD would program now.
func check(args *skel.CmdArgs) error {
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	record, err := attachment.NewStore(conf.StateDir).Load(key(conf, args))
	if errors.Is(err, fs.ErrNotExist) {
		record, err = planned(conf, args)
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
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	return ns.Do(func() error { return compare(ctx, record) })
}

// planned is the state that an ADD would leave now.
func planned(conf Conf, args *skel.CmdArgs) (attachment.Record, error) {
	if err := parsePrevResult(&conf); err != nil {
		return attachment.Record{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	p, err := makePlan(ctx, conf, args, startStages())
	return p.record(conf, args), err
}

// compare runs in the pod's namespace.
func compare(ctx context.Context, record attachment.Record) error {
	backend, err := backendOf(ctx, record)
	if err != nil {
		return cniError(err)
	}
	for _, f := range rules.Families {
		want, err := rules.ParseSave(record.Rules[f])
		if err != nil {
			return cniError(fmt.Errorf("read attachment state: %w", err))
		}
		if len(want.Chains) == 0 {
			continue
		}
		got, err := backend.List(f, want.Chains)
		if err != nil {
			return cniError(err)
		}
		if diff := verify.Differences(f, want, got); len(diff) > 0 {
			return types.NewError(CodeDifferent, fmt.Sprintf("pod %s: %s", record.Pod, diff[0]), fmt.Sprintf("%d differences in all; recreate the pod", len(diff)))
		}
	}
	return nil
}

func backendOf(ctx context.Context, record attachment.Record) (*iptables.Backend, error) {
	for _, b := range iptables.Installed(ctx) {
		if b.Name() == record.Backend {
			return b, nil
		}
	}
	return iptables.Detect(ctx)
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
	store := attachment.NewStore(conf.StateDir)
	record, err := store.Load(key(conf, args))
	if err != nil || record.Outcome == attachment.Programmed {
		err = removeRules(conf, args, record)
	}
	err = errors.Join(err, store.Delete(key(conf, args)))
	level := slog.LevelDebug
	attrs := []slog.Attr{slog.String("verb", "DEL"), slog.String("pod", record.Pod), slog.String("containerID", args.ContainerID), slog.String("netns", args.Netns)}
	if err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	log.LogAttrs(context.Background(), level, "pod deleted", attrs...)
	return nil
}

// removeRules takes the chains of every mesh out of the pod's namespace, if there still is one. Without a record it looks
// with every iptables that the host has: ADD may have been killed before it could write down which it used.
func removeRules(conf Conf, args *skel.CmdArgs, record attachment.Record) error {
	if args.Netns == "" {
		return nil
	}
	ns, err := netns.Open(args.Netns)
	if errors.Is(err, netns.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	lock, err := ns.Lock(ctx)
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		families := slices.Sorted(maps.Keys(record.Rules))
		if len(families) == 0 {
			families = rules.Families
		}
		var errs []error
		for _, b := range iptables.Installed(ctx) {
			if record.Backend == "" || record.Backend == b.Name() {
				errs = append(errs, b.Remove(ctx, lock, allChains(), families))
			}
		}
		return errors.Join(errs...)
	})
}

// allChains are the chains of every mesh.
func allChains() []rules.Chain {
	var all []rules.Chain
	for _, name := range mesh.Names() {
		d, _ := mesh.Find(name)
		all = append(all, rules.Build(redirect.Policy{Chains: d.Chains}).Chains...)
	}
	return all
}

// gc drops the state of attachments that are not among the valid ones of this network.
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
	if err := errors.Join(errs...); err != nil {
		return cniError(err)
	}
	return nil
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
	backend, err := iptables.Detect(ctx)
	if err != nil {
		return err
	}
	if err := backend.Works(); err != nil {
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
