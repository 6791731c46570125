package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/rules"
)

// programTime bounds the programming of one pod.
const programTime = 10 * time.Second

// program programs a running pod, as ADD would have: it finds the pod's namespace by its addresses, programs routes and
// rules, compares them with the kernel's and writes the record. That comes last, other than in ADD: a sweep after a crash
// must find the pod again, as nobody else would. On an error nothing is left. It is idempotent. Where an ADD has let the pod
// start unmeshed, its record becomes the repair's. Without one, the pod's DEL looks into the namespace, and the agent itself
// deletes the record when the pod is gone.
func (a *Agent) program(ctx context.Context, f finding) error {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	ns, place, err := openNamespaceOf(a.conf.NetnsDir, f.pod.addresses)
	if err != nil {
		return err
	}
	defer ns.Close()
	lock, err := ns.Lock(ctx, a.conf.StateDir)
	if err != nil {
		return err
	}
	// An ADD may have had the lock before.
	records, err := a.records()
	if err != nil {
		return err
	}
	old, repair := toRepair(records, f.pod)
	if !repair {
		return nil
	}
	if old.Key != (attachment.Key{}) { // the list has it without what the namespace may hold
		if old, err = a.store.Load(old.Key); err != nil {
			return err
		}
	}
	p, err := a.plan(ctx, f.pod)
	if err != nil {
		return err
	}
	record := a.record(f.pod, place, old)
	if record.NamespaceID, err = ns.ID(); err != nil {
		return err
	}
	return ns.Do(func() error { return a.carryOut(ctx, lock, p, record, compare) })
}

// plan is what is to be programmed.
type plan struct {
	rules    rules.Ruleset
	families []rules.Family
}

func (a *Agent) plan(ctx context.Context, e entry) (plan, error) {
	decision, err := a.decide(ctx, e)
	switch {
	case err != nil:
		return plan{}, err
	case decision.Skip != "":
		return plan{}, fmt.Errorf("the mesh does not want it any more: %s", decision.Skip)
	}
	return plan{decision.Rules, decision.Families}, nil
}

// carryOut programs, checks and writes the record, and leaves all or nothing. It runs in the pod's namespace.
func (a *Agent) carryOut(ctx context.Context, lock *os.File, p plan, r attachment.Record, check func(context.Context, attachment.Record) error) error {
	program, err := backend.Prepare(ctx, backend.Auto, p.rules, p.families)
	if err != nil {
		return err
	}
	program.Keep(&r)
	if err := program.Apply(ctx, lock, r.Stale...); err != nil {
		return err
	}
	if err = check(ctx, r); err == nil {
		r.Stale = nil
		err = a.store.Save(r)
	}
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), programTime)
	defer cancel()
	return errors.Join(err, backend.Remove(undo, lock, r))
}

// record is what the repair writes down: in the place of old, if ADD has left that of the pod.
func (a *Agent) record(e entry, p place, old attachment.Record) attachment.Record {
	r := attachment.Record{
		Key:     attachment.RepairKey(e.runtimeUID(), p.link),
		Netns:   p.path,
		Pod:     e.String(),
		PodUID:  e.runtimeUID(),
		Mesh:    a.conf.Dialect.Name,
		Outcome: attachment.Programmed,
		Time:    time.Now().UTC(),
	}
	if old.Key != (attachment.Key{}) {
		r.Key, r.Netns, r.Addresses, r.Time, r.Stale = old.Key, old.Netns, old.Addresses, old.Time, old.Traces()
	}
	return r
}

// compare fails with the first difference between the kernel and what was programmed.
func compare(ctx context.Context, r attachment.Record) error {
	different, err := backend.Differences(ctx, r)
	if err == nil && len(different) > 0 {
		err = fmt.Errorf("the kernel differs from what was programmed (%d times): %s", len(different), different[0])
	}
	return err
}

// place is where a pod's network is.
type place struct{ path, link string }

// openNamespaceOf opens the one namespace under dir that has all the addresses. None, or more than one, is an error.
func openNamespaceOf(dir string, addresses []netip.Addr) (*netns.Pod, place, error) {
	if len(addresses) == 0 {
		return nil, place{}, errors.New("the pod has no address by which to find its network namespace")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, place{}, fmt.Errorf("list network namespaces: %w", err)
	}
	var found []place
	var inodes []os.FileInfo
	for _, file := range files {
		path := filepath.Join(dir, file.Name())
		link, err := linkOf(path, addresses)
		if err != nil {
			return nil, place{}, err
		}
		info, err := os.Stat(path)
		if link == "" || err != nil || slices.ContainsFunc(inodes, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
			continue
		}
		found, inodes = append(found, place{path, link}), append(inodes, info)
	}
	switch len(found) {
	case 0:
		return nil, place{}, fmt.Errorf("no network namespace in %s has %s", dir, join(addresses))
	case 1:
		ns, err := netns.Open(found[0].path)
		return ns, found[0], err
	}
	return nil, place{}, fmt.Errorf("%s and %s both have %s", found[0].path, found[1].path, join(addresses))
}

func join(addresses []netip.Addr) string {
	var out []string
	for _, addr := range addresses {
		out = append(out, addr.String())
	}
	return strings.Join(out, " and ")
}

// linkOf returns the interface that has the first of the addresses in the namespace at path, if that has all of them. The
// host's namespace, and what is none, have none.
func linkOf(path string, addresses []netip.Addr) (string, error) {
	ns, err := netns.Open(path)
	if errors.Is(err, netns.ErrGone) || errors.Is(err, netns.ErrHost) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer ns.Close()
	var link string
	err = ns.Do(func() error {
		have, err := linksByAddress()
		if err != nil {
			return err
		}
		for _, addr := range addresses {
			if have[addr] == "" {
				return nil
			}
		}
		link = have[addresses[0]]
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("list addresses in %s: %w", path, err)
	}
	return link, nil
}

// linksByAddress lists the interfaces of the calling thread's namespace that are up.
func linksByAddress() (map[netip.Addr]string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	have := map[netip.Addr]string{}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := l.Addrs()
		if err != nil {
			return nil, err
		}
		for _, address := range addresses {
			if p, err := netip.ParsePrefix(address.String()); err == nil {
				have[p.Addr().Unmap().WithZone("")] = l.Name
			}
		}
	}
	return have, nil
}
