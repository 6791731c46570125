// Package verify finds out whether this node's pods are as they should be: the sidecar, the kernel's rules, what the mesh wants
// today, and who else uses what is the proxy's. It changes nothing.
package verify

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/podns"
)

// Verifier verifies pods. It needs root.
type Verifier struct {
	podns.Finder
	// ConfDir is the runtime's folder of network configurations; empty means DefaultConfDir.
	ConfDir string
	// Manifests, unless empty, is asked for pods and configuration instead of what detour's net conf names.
	Manifests string
}

// All verifies every pod of the node, by name.
func (v Verifier) All(ctx context.Context) (Report, error) {
	pods, err := v.Finder.All()
	if err != nil {
		return Report{}, err
	}
	r, err := v.start()
	if err != nil {
		return Report{}, err
	}
	report := Report{Node: r.unreadable}
	for _, p := range pods {
		report.Pods = append(report.Pods, r.pod(ctx, p))
	}
	report.Pods = append(report.Pods, r.gone(pods)...)
	slices.SortStableFunc(report.Pods, func(a, b Pod) int { return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.UID, b.UID)) })
	return report.concluded(), nil
}

// Pods verifies pods by name. uid tells pods of one name apart; it may be empty. It is an error if a pod is not on this node.
func (v Verifier) Pods(ctx context.Context, ids []pod.ID, uid string) (Report, error) {
	r, err := v.start()
	if err != nil {
		return Report{}, err
	}
	var report Report
	for _, id := range ids {
		p, err := v.Find(id, uid)
		if err != nil {
			return Report{}, err
		}
		report.Pods = append(report.Pods, r.pod(ctx, p))
	}
	return report.concluded(), nil
}

// run is one run of a Verifier.
type run struct {
	source     *source
	proc       string
	records    []attachment.Record
	unreadable []Finding
}

func (v Verifier) start() (*run, error) {
	if v.Manifests != "" {
		if _, err := kube.NewManifests(v.Manifests); err != nil {
			return nil, err
		}
	}
	f := v.WithDefaults()
	r := &run{proc: f.Proc, source: newSource(cmp.Or(v.ConfDir, DefaultConfDir), v.Manifests)}
	err := attachment.NewStore(f.StateDir).All(func(record attachment.Record, err error) {
		if err != nil {
			r.unreadable = append(r.unreadable, Finding{BadRecord, err.Error(),
				"delete the file, and the pod of the container that its name tells"})
			return
		}
		r.records = append(r.records, record)
	})
	return r, err
}

// gone returns the pods that have records but no network namespace.
func (r *run) gone(living []podns.Pod) []Pod {
	var gone []Pod
	for _, record := range r.records {
		same := func(id, uid string) bool { return id == record.Pod && (uid == record.PodUID || record.PodUID == "") }
		if record.Pod == "" || slices.ContainsFunc(living, func(p podns.Pod) bool { return same(p.ID.String(), p.UID) }) ||
			slices.ContainsFunc(gone, func(p Pod) bool { return same(p.Pod, p.UID) }) {
			continue
		}
		p := newPod(record.Pod, record.PodUID)
		p.finding(Gone, "nothing, if the pod is gone; else recreate it",
			"there is no network namespace %s any more, but the record of its ADD: the runtime has called no CNI DEL", record.Netns)
		gone = append(gone, p.concluded())
	}
	return gone
}

// pod verifies one pod.
func (r *run) pod(ctx context.Context, at podns.Pod) Pod {
	p := newPod(at.ID.String(), at.UID)
	p.Netns = at.Netns
	ns, err := netns.Open(at.Netns)
	switch {
	case errors.Is(err, netns.ErrHost):
		p.Reason = "it has the node's own network (hostNetwork)"
	case err != nil:
		p.unknown(RulesUnknown, "run this again as root", "%v", err)
	default:
		defer ns.Close()
		c := &checks{Pod: &p, run: r, at: at, ns: ns}
		c.all(ctx)
	}
	return p.concluded()
}
