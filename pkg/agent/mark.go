package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/pod"
)

// Taint and its effect NoSchedule may be on a node from its creation, so that no pod starts there before detour is ready.
const (
	Taint       = "detour.io/not-ready"
	taintEffect = "NoSchedule"
)

// keepMarked keeps the node's label true to what becomes of a pod there, if the agent is to do so.
//
//   - The node can serve an ADD: the label is set, and the taint removed. The agent never adds the taint.
//   - The runtime would start pods without the plugin: the label is removed. This is so on a node that was set up anew under its
//     name, and where another installer keeps the entry out. An entry that is back by the next look is not worth two writes.
//   - The plugin is called, but fails: the label stays. Pods wait there for the agent or the API server, and none starts
//     unmeshed. So the label outlives the agent: its restart, a reboot, a DaemonSet that no longer covers the node. It has to, as a
//     kubelet that restarts on a node without the label ends the running pods that select it.
func (a *Agent) keepMarked(ctx context.Context) {
	if !a.conf.MarkNode {
		return
	}
	marked := a.metrics.marked.WithLabelValues()
	var has bool        // as it was written last
	var again time.Time // when to look at the node, though nothing has changed here
	retry, absences := a.timing.check, 0
	for ; ctx.Err() == nil; pause(ctx, a.timing.check) {
		installed, missing := a.conf.Installed()
		if absences++; installed {
			absences = 0
		}
		ready := installed && len(a.Missing(ctx)) == 0
		if !ready && absences < 2 || ready == has && time.Now().Before(again) {
			continue
		}
		has = ready
		wait := a.timing.node/2 + rand.N(a.timing.node) // a node may be recreated under its name
		if err := a.mark(ctx, ready, missing); err == nil {
			marked.Set(map[bool]float64{true: 1}[ready])
			retry = a.timing.check
		} else if ctx.Err() == nil {
			a.log.Warn("node not marked; trying again", "event", "mark-failed", "ready", ready, "error", err.Error())
			wait, retry = retry, min(2*retry, a.timing.node/10)
		}
		again = time.Now().Add(wait)
	}
}

// mark sets or removes the label, and removes the taint of a node that is ready.
func (a *Agent) mark(ctx context.Context, ready bool, missing string) error {
	n, err := a.getNode(ctx)
	if err != nil {
		return err
	}
	changed, err := setLabel(ctx, a.client, a.conf.Node, n, ready)
	switch {
	case err != nil:
		return err
	case changed && ready:
		a.log.Info("node is ready; labelled", "event", "node-marked", "label", pod.ReadyLabel)
	case changed:
		a.log.Warn("pods would start without detour; label removed", "event", "node-unmarked", "label", pod.ReadyLabel, "missing", missing)
	}
	if !ready {
		return nil
	}
	removed, err := a.removeTaint(ctx, n.Spec.Taints)
	if removed {
		a.log.Info("node is ready; taint removed", "event", "taint-removed", "taint", Taint)
	}
	return err
}

// node is what the agent reads of a Node.
type node struct {
	Metadata struct{ Labels map[string]string }
	Spec     struct{ Taints []json.RawMessage }
}

func nodePath(name string) string { return "/api/v1/nodes/" + name }

func (a *Agent) getNode(ctx context.Context) (n node, _ error) {
	return n, a.client.Get(ctx, nodePath(a.conf.Node), &n)
}

// setLabel sets or removes ReadyLabel, if it is not as it should be on the node n, and touches no other.
func setLabel(ctx context.Context, c *cache.Client, name string, n node, ready bool) (changed bool, _ error) {
	value, there := n.Metadata.Labels[pod.ReadyLabel]
	if there == ready && (!ready || value == "true") {
		return false, nil
	}
	labels := map[string]any{pod.ReadyLabel: nil}
	if ready {
		labels[pod.ReadyLabel] = "true"
	}
	err := c.Patch(ctx, nodePath(name), types.MergePatchType, map[string]any{"metadata": map[string]any{"labels": labels}})
	return err == nil, err
}

// removeTaint removes the taint, if it is there. The patch only works on the taints as they were read, so it removes no other if
// somebody changes them meanwhile; then removeTaint tries again.
func (a *Agent) removeTaint(ctx context.Context, taints []json.RawMessage) (bool, error) {
	path := nodePath(a.conf.Node)
	const tries = 5
	for try := 1; ; try++ {
		at, err := findTaint(taints)
		if err != nil || at < 0 {
			return false, err
		}
		where := fmt.Sprintf("/spec/taints/%d", at)
		err = a.client.Patch(ctx, path, types.JSONPatchType, []any{
			map[string]any{"op": "test", "path": where, "value": taints[at]},
			map[string]any{"op": "remove", "path": where},
		})
		changed := apierrors.IsInvalid(err) || apierrors.IsConflict(err)
		if !changed || try == tries {
			return err == nil, err
		}
		pause(ctx, time.Duration(try)*100*time.Millisecond)
		n, err := a.getNode(ctx)
		if err != nil {
			return false, err
		}
		taints = n.Spec.Taints
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func findTaint(taints []json.RawMessage) (int, error) {
	for i, raw := range taints {
		var t struct{ Key, Effect string }
		if err := json.Unmarshal(raw, &t); err != nil {
			return -1, fmt.Errorf("decode a taint: %w", err)
		}
		if t.Key == Taint && t.Effect == taintEffect {
			return i, nil
		}
	}
	return -1, nil
}
