package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// Taint and its effect NoSchedule may be on a node from its creation, so that no pod starts there before detour is ready.
const (
	Taint       = "detour.io/not-ready"
	taintEffect = "NoSchedule"
)

// keepTaintOff removes the taint whenever the node is ready and has it, if the agent is to do so. It never adds it.
func (a *Agent) keepTaintOff(ctx context.Context) {
	wait := a.timing.check
	for ctx.Err() == nil && a.conf.RemoveTaint {
		next := a.timing.check
		if missing := a.Missing(ctx); len(missing) == 0 {
			removed, err := a.removeTaint(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				a.log.Warn("taint not removed from the node", "event", "taint-failed", "taint", Taint, "error", err.Error())
				next = min(2*wait, a.timing.taint)
			case err == nil:
				next = a.timing.taint/2 + rand.N(a.timing.taint) // a node may be recreated under its name
			}
			if removed {
				a.log.Info("node is ready; taint removed", "event", "taint-removed", "taint", Taint)
			}
		}
		wait = next
		pause(ctx, wait)
	}
}

// removeTaint removes the taint, if it is there. The patch only works on the taints as they were read, so it removes no other if
// somebody changes them meanwhile; then removeTaint tries again.
func (a *Agent) removeTaint(ctx context.Context) (bool, error) {
	path := "/api/v1/nodes/" + a.conf.Node
	const tries = 5
	for try := 1; ; try++ {
		var node struct {
			Spec struct{ Taints []json.RawMessage }
		}
		if err := a.client.Get(ctx, path, &node); err != nil {
			return false, err
		}
		at, err := findTaint(node.Spec.Taints)
		if err != nil || at < 0 {
			return false, err
		}
		where := fmt.Sprintf("/spec/taints/%d", at)
		err = a.client.Patch(ctx, path, types.JSONPatchType, []any{
			map[string]any{"op": "test", "path": where, "value": node.Spec.Taints[at]},
			map[string]any{"op": "remove", "path": where},
		})
		changed := apierrors.IsInvalid(err) || apierrors.IsConflict(err)
		if !changed || try == tries {
			return err == nil, err
		}
		pause(ctx, time.Duration(try)*100*time.Millisecond)
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
