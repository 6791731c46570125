package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// plan is what a network of this node wants of pods: its net conf's, or a mesh's default.
type plan struct {
	network string
	choice  string
	timeout time.Duration // of an ADD
	options decision.Options
}

func planOf(c netconf.Conf) plan { return plan{c.Name, c.Backend, c.Timeout, c.Options} }

// defaultPlans are those of the meshes, for a node without a net conf.
func defaultPlans(meshes []string) ([]plan, error) {
	var all []plan
	for _, name := range meshes {
		d, ok := mesh.Find(name)
		if !ok {
			return nil, fmt.Errorf("mesh %q is none of %v", name, mesh.Names())
		}
		all = append(all, plan{"", backend.Auto, netconf.DefaultTimeout, decision.Options{Dialect: d}})
	}
	return all, nil
}

// ruleset is what the network wants of a pod without annotations.
func (p plan) ruleset() (rules.Ruleset, error) {
	type object = map[string]any
	d := p.options.Dialect
	annotations := object{}
	if d.Marker != "" {
		annotations[d.Marker] = "{}"
	}
	id := pod.ID{Namespace: "detour-doctor", Name: "pod"}
	text, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"namespace": id.Namespace, "name": id.Name, "annotations": annotations},
		"spec": object{"containers": []object{
			{"name": "app"},
			{"name": d.Sidecar, "securityContext": object{"runAsUser": d.Proxy.UID}},
		}},
	})
	if err != nil {
		return rules.Ruleset{}, err
	}
	decided, err := p.options.Decide(decision.Input{ID: id, Pod: text, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}})
	if err == nil && decided.Skip != "" {
		err = fmt.Errorf("it would be left alone: %s", decided.Skip)
	}
	return decided.Rules, err
}

// try programs each plan for pods of each family and of both.
func try(ctx context.Context, plans []plan, families []rules.Family) ([]Trial, error) {
	of := [][]rules.Family{families}
	if len(families) > 1 {
		of = [][]rules.Family{families[:1], families[1:], families}
	}
	var all []Trial
	for _, p := range plans {
		rs, err := p.ruleset()
		if err != nil {
			return nil, fmt.Errorf("decide about a pod of mesh %s: %w", p.options.Dialect.Name, err)
		}
		for _, list := range of {
			if i := slices.IndexFunc(all, Trial.hangs); i >= 0 { // so would this one
				t := all[i]
				t.Network, t.Mesh, t.Families = p.network, p.options.Dialect.Name, list
				all = append(all, t)
				continue
			}
			all = append(all, p.try(ctx, rs, list))
		}
	}
	return all, nil
}

func (p plan) try(ctx context.Context, rs rules.Ruleset, families []rules.Family) Trial {
	t := Trial{Network: p.network, Mesh: p.options.Dialect.Name, Families: families, Result: Fine}
	got, err := p.add(ctx, rs, families)
	t.Backend = got.variant
	if got.because != nil {
		t.Reason = got.because.Error()
	}
	if err != nil {
		t.hung = errors.Is(err, context.DeadlineExceeded)
		t.Result, t.Backend, t.Reason = Wrong, "", err.Error()
		t.Do = "the features below that are missing say what to load or to install; no pod of the mesh starts on this node until then"
	}
	return t
}

func (t Trial) hangs() bool { return t.hung }

// judge says what the missing features mean: nothing if ADD programs with another backend.
func judge(ctx context.Context, found []Feature, plans []plan, trials []Trial) {
	for i := range found {
		f := &found[i]
		if f.Present {
			continue
		}
		if i := slices.IndexFunc(trials, Trial.hangs); i >= 0 { // as every attempt would
			f.Result = trials[i].Result
			continue
		}
		if f.Name == Redirected { // ADD does not find that out
			if slices.ContainsFunc(trials, func(t Trial) bool { return t.Backend == f.Backend && slices.Contains(t.Families, f.Family) }) {
				f.Result = Wrong
			}
			continue
		}
		for _, p := range plans {
			f.Result = worst([]Result{f.Result, p.without(ctx, *f)})
		}
	}
}

// without is what it means for the network that a feature is missing.
func (p plan) without(ctx context.Context, missing Feature) Result {
	rs, err := p.ruleset()
	if err != nil {
		return Unknown
	}
	always := kindsOf(rs)
	var needed []feature
	for _, f := range features {
		option, _ := f.neededBy(p.options.Dialect.Name)
		if slices.Contains(always, f.name) || f.name == missing.Name && option {
			needed = append(needed, f)
		}
	}
	if _, err := p.add(ctx, joined(needed), []rules.Family{missing.Family}); err == nil {
		return Fine
	}
	if slices.Contains(always, missing.Name) {
		return Wrong
	}
	return Limited
}
