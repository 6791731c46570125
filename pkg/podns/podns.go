// Package podns finds the network namespaces and the processes of this node's pods: by detour's records, else by the kubelet's
// log folders and the processes' control groups, so that it works on nodes without detour, too. It enters no namespace.
package podns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// ErrGone says that the node knows the pod but that its network namespace no longer exists.
var ErrGone = errors.New("the pod is gone")

// Pod is a pod that has a network namespace on this node.
type Pod struct {
	ID pod.ID
	// UID is the one under which the kubelet runs the pod. A static pod's is the hash of its manifest, not the UID of its copy in
	// the API. It is empty if the runtime passed none and the kubelet has no log folder for the pod.
	UID string
	// Netns is a path that opens the namespace: the runtime's, such as /run/netns/NAME, else /proc/PID/ns/net.
	// For a pod with hostNetwork, it is the node's own namespace.
	Netns string
	// PIDs are the pod's processes, in ascending order: those in its namespace or in its control groups.
	PIDs []int
	// Record is the record of the ADD that programmed the namespace, or else of the last one that left it alone; nil without detour.
	Record *attachment.Record
}

// Finder finds the pods of this node. An empty field has its default.
type Finder struct {
	StateDir string // the net conf's stateDir
	Proc     string // /proc, with the processes of the node
	PodLogs  string // the kubelet's podLogsDir: /var/log/pods
}

// Find returns the pod with this name, and with this UID unless it is empty. The error wraps ErrGone if the pod has no namespace
// any more. It is an error, too, if several running pods have the name and uid is empty. Find needs root: only root may see the
// namespaces of other users' processes.
func (f Finder) Find(id pod.ID, uid string) (Pod, error) {
	f = f.WithDefaults()
	processes, err := f.processes()
	if err != nil {
		return Pod{}, err
	}
	known, err := f.known(processes)
	if err != nil {
		return Pod{}, err
	}
	known = slices.DeleteFunc(known, func(t traces) bool { return t.id != id.String() })
	if len(known) == 0 {
		return Pod{}, fmt.Errorf("no pod %s on this node: neither the records in %s nor the log folders in %s name it",
			id, f.StateDir, f.PodLogs)
	}
	uids := uidsOf(known)
	if uid != "" {
		known = slices.DeleteFunc(known, func(t traces) bool { return t.uid != uid })
	}
	if len(known) == 0 {
		return Pod{}, fmt.Errorf("no pod %s with UID %s on this node; the pods of this name have %s", id, uid, uids)
	}
	living, err := f.living(known, processes)
	switch {
	case err != nil:
		return Pod{}, fmt.Errorf("find pod %s: %w", id, err)
	case len(living) == 0:
		return Pod{}, fmt.Errorf("%w: %s (UID %s) has neither a network namespace nor a process on this node",
			ErrGone, id, uidsOf(known))
	case len(living) > 1:
		return Pod{}, fmt.Errorf("%d pods are called %s on this node: choose one by --pod-uid: %s",
			len(living), id, uidsOf(slices.DeleteFunc(known, func(t traces) bool { return !alive(t, living) })))
	}
	return living[0], nil
}

// All returns every pod that has a network namespace on this node, by name. It needs root, as Find does.
func (f Finder) All() ([]Pod, error) {
	f = f.WithDefaults()
	processes, err := f.processes()
	if err != nil {
		return nil, err
	}
	known, err := f.known(processes)
	if err != nil {
		return nil, err
	}
	return f.living(known, processes)
}

// In returns the processes of the network namespace with this ID, which netns.Pod has, in ascending order. Only root sees those of
// other users.
func (f Finder) In(id string) ([]int, error) {
	all, err := f.WithDefaults().processes()
	var pids []int
	for _, p := range all {
		if p.netns == id {
			pids = append(pids, p.pid)
		}
	}
	return pids, err
}

// WithDefaults fills in the empty fields.
func (f Finder) WithDefaults() Finder {
	return Finder{
		StateDir: cmp.Or(f.StateDir, netconf.DefaultStateDir),
		Proc:     cmp.Or(f.Proc, "/proc"),
		PodLogs:  cmp.Or(f.PodLogs, "/var/log/pods"),
	}
}

// traces are what the node knows of a pod, which may be gone.
type traces struct {
	id, uid string
	records []attachment.Record
}

func uidsOf(known []traces) string {
	var uids []string
	for _, t := range known {
		uids = append(uids, cmp.Or(t.uid, "(unknown)"))
	}
	return strings.Join(uids, ", ")
}

func alive(t traces, living []Pod) bool {
	return slices.ContainsFunc(living, func(p Pod) bool { return p.ID.String() == t.id && p.UID == t.uid })
}

// known returns all pods with a log folder or a record, by name and UID. If the runtime passed no UID to ADD, the control groups
// of the processes in the record's namespace tell it.
func (f Finder) known(processes []process) ([]traces, error) {
	all, err := f.logged()
	if err != nil {
		return nil, err
	}
	records, err := f.records()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		uid := cmp.Or(r.PodUID, uidIn(open(r), processes))
		i := slices.IndexFunc(all, func(t traces) bool { return t.id == r.Pod && t.uid == uid })
		if i < 0 {
			i, all = len(all), append(all, traces{id: r.Pod, uid: uid})
		}
		all[i].records = append(all[i].records, r)
	}
	slices.SortStableFunc(all, func(a, b traces) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.uid, b.uid)) })
	return all, nil
}

// logged returns the pods for which the kubelet has made a log folder, NAMESPACE_NAME_UID.
func (f Finder) logged() ([]traces, error) {
	folders, err := os.ReadDir(f.PodLogs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list pods by their log folders: %w", err)
	}
	var pods []traces
	for _, folder := range folders {
		if parts := strings.Split(folder.Name(), "_"); len(parts) == 3 {
			pods = append(pods, traces{id: parts[0] + "/" + parts[1], uid: parts[2]})
		}
	}
	return pods, nil
}

// records returns all records of pods: those of programmed pods first, then the newest first. It leaves out unreadable ones, for
// whose pods there are still the processes.
func (f Finder) records() ([]attachment.Record, error) {
	var records []attachment.Record
	err := attachment.NewStore(f.StateDir).All(func(r attachment.Record, err error) {
		if err == nil && r.Pod != "" {
			records = append(records, r)
		}
	})
	if err != nil {
		return nil, err
	}
	rank := func(r attachment.Record) int { return slices.Index(attachment.Outcomes, r.Outcome) }
	slices.SortStableFunc(records, func(a, b attachment.Record) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.Time.Compare(a.Time))
	})
	return records, nil
}

// living returns those of the pods that have a network namespace.
func (f Finder) living(known []traces, processes []process) ([]Pod, error) {
	var pods []Pod
	for _, t := range known {
		p, err := f.resolve(t, processes)
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// resolve finds the pod's namespace: the runtime's path in a record if it still opens that namespace, else the first process's.
func (f Finder) resolve(t traces, processes []process) (Pod, error) {
	namespace, name, _ := strings.Cut(t.id, "/")
	p := Pod{ID: pod.ID{Namespace: namespace, Name: name, UID: t.uid}, UID: t.uid}
	var netns string
	for _, r := range t.records {
		if netns = open(r); netns != "" {
			p.Netns, p.Record = r.Netns, &r
			break
		}
	}
	if netns == "" {
		first, err := f.first(t.uid, processes)
		if err != nil {
			return Pod{}, err
		}
		p.Netns, netns = f.netns(first.pid), first.netns
		if i := slices.IndexFunc(t.records, func(r attachment.Record) bool { return r.NamespaceID == netns }); i >= 0 {
			p.Record = &t.records[i]
		}
	}
	host, _ := identify(f.netns(1))
	for _, other := range processes {
		if other.of(t.uid) || other.netns == netns && netns != host {
			p.PIDs = append(p.PIDs, other.pid)
		}
	}
	return p, nil
}

// open returns the ID of the record's namespace, or "" if its path no longer opens that namespace.
func open(r attachment.Record) string {
	var on unix.Statfs_t
	if unix.Statfs(r.Netns, &on) != nil || on.Type != unix.NSFS_MAGIC {
		return ""
	}
	id, err := identify(r.Netns)
	if err != nil || r.NamespaceID != "" && r.NamespaceID != id {
		return ""
	}
	return id
}

func (f Finder) netns(pid int) string { return filepath.Join(f.Proc, fmt.Sprint(pid), "ns/net") }
