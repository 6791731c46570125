package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/detour-cni/detour/pkg/agent/cache"
)

// Nodes says how to take detour off all nodes.
type Nodes struct {
	// Kubeconfig is as in Config.
	Kubeconfig string
	// DeleteFirst are paths at the API server of what changes pods at admission. A pod without its init container must find detour.
	DeleteFirst []string
	// Namespace and Name are the DaemonSet's.
	Namespace, Name string
	// Patch is the JSON patch that turns the agents into their own removal.
	Patch []byte
	// Timeout bounds all of it; Pause is the time between two looks.
	Timeout, Pause time.Duration
	Log            *slog.Logger
}

// daemonSet is what Uninstall reads of the DaemonSet.
type daemonSet struct {
	Metadata struct {
		UID        string
		Generation int64
	}
	Spec   struct{ Template podTemplate }
	Status struct {
		ObservedGeneration                                              int64
		DesiredNumberScheduled, UpdatedNumberScheduled, NumberAvailable int
	}
}

type podTemplate struct {
	Spec struct {
		NodeName   string
		Containers []struct{ Args []string }
	}
}

// agentPod is what Uninstall reads of an agent's pod.
type agentPod struct {
	podTemplate
	Metadata struct {
		Name            string
		OwnerReferences []owner
	}
	Status struct{ Conditions []condition }
}

type (
	owner     struct{ UID string }
	condition struct{ Type, Status string }
)

var ready = condition{"Ready", "True"}

// uninstalls reports whether the pods uninstall detour.
func (t podTemplate) uninstalls() bool {
	c := t.Spec.Containers
	return len(c) > 0 && len(c[0].Args) > 0 && c[0].Args[0] == "uninstall"
}

// Uninstall deletes what comes first, patches the DaemonSet and returns when every node starts its pods without detour. It is
// idempotent. Without the DaemonSet there is nothing to do. Until the timeout it repeats what fails, but for a patch that the API
// server does not take; the error then names the nodes that are not done.
func (n Nodes) Uninstall(ctx context.Context) error {
	client, err := newClient(n.Kubeconfig)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, n.Timeout)
	defer cancel()
	var why error
	for limited.Err() == nil {
		err := n.try(limited, client)
		if err == nil || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
			return err
		}
		if limited.Err() == nil || why == nil { // else it says that time is up
			why = err
		}
		pause(limited, n.Pause)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return n.explain(ctx, client, why)
}

// errWaiting is the answer while the nodes are at it.
var errWaiting = errors.New("the nodes are not done")

// try does what is left to do, and returns nil when all is done.
func (n *Nodes) try(ctx context.Context, c *cache.Client) error {
	for ; len(n.DeleteFirst) > 0; n.DeleteFirst = n.DeleteFirst[1:] {
		if err := c.Delete(ctx, n.DeleteFirst[0]); err == nil {
			return fmt.Errorf("%s is being deleted", n.DeleteFirst[0])
		} else if !apierrors.IsNotFound(err) {
			return err
		}
	}
	var d daemonSet
	err := c.Get(ctx, n.path(), &d)
	switch {
	case apierrors.IsNotFound(err):
		n.Log.Warn("there is no DaemonSet to patch", "event", "nodes-skipped", "daemonSet", n.Namespace+"/"+n.Name)
		return nil
	case err != nil:
		return err
	case !d.Spec.Template.uninstalls():
		if err := c.Patch(ctx, n.path(), types.JSONPatchType, json.RawMessage(n.Patch)); err != nil {
			return err
		}
		n.Log.Info("the agents uninstall detour now", "event", "nodes-uninstalling", "daemonSet", n.Namespace+"/"+n.Name)
		return errWaiting
	}
	s := d.Status
	if s.ObservedGeneration < d.Metadata.Generation || min(s.UpdatedNumberScheduled, s.NumberAvailable) < s.DesiredNumberScheduled {
		return errWaiting
	}
	n.Log.Info("every node starts its pods without detour", "event", "nodes-uninstalled", "nodes", s.DesiredNumberScheduled)
	return nil
}

func (n Nodes) path() string {
	return "/apis/apps/v1/namespaces/" + n.Namespace + "/daemonsets/" + n.Name
}

// explain says after the timeout which nodes are not done, and why as far as that is known.
func (n Nodes) explain(ctx context.Context, c *cache.Client, why error) error {
	after := fmt.Errorf("uninstall detour from the nodes: not done after %s: %w", n.Timeout, why)
	var d daemonSet
	if err := c.Get(ctx, n.path(), &d); err != nil || !d.Spec.Template.uninstalls() {
		return after
	}
	undone, err := n.undone(ctx, c, d.Metadata.UID)
	switch {
	case err != nil:
		return fmt.Errorf("%w; which of them can't be found out: %w", after, err)
	case len(undone) == 0:
		return after
	}
	return fmt.Errorf("uninstall detour from the nodes: after %s these may still start pods with it: %s; "+
		"look at `kubectl -n %s logs --selector app.kubernetes.io/component=agent --container uninstall --prefix`, "+
		"delete nodes that are gone, and uninstall again", n.Timeout, strings.Join(undone, ", "), n.Namespace)
}

// undone are the nodes of the DaemonSet's pods that are not ready or not patched yet.
func (n Nodes) undone(ctx context.Context, c *cache.Client, uid string) (nodes []string, _ error) {
	var pods struct{ Items []agentPod }
	if err := c.Get(ctx, "/api/v1/namespaces/"+n.Namespace+"/pods", &pods); err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		switch {
		case !slices.Contains(p.Metadata.OwnerReferences, owner{uid}) || slices.Contains(p.Status.Conditions, ready) && p.uninstalls():
		case p.Spec.NodeName == "":
			nodes = append(nodes, "the one of the unscheduled pod "+p.Metadata.Name)
		default:
			nodes = append(nodes, p.Spec.NodeName)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes), nil
}
