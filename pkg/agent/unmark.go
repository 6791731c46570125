package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// settle is how long scheduler and kubelet may take to hear that the label is gone.
const settle = 5 * time.Second

// Unmark prepares a node for the removal of detour: it takes the label off and waits until no pod there selects it, as such a pod, or
// its next sandbox, would start unmeshed. kubeconfig is as in Config. No agent may be running on the node: before each look, serve
// does what lets pods start without one. It is idempotent. An error, also that of ctx or serve, means that detour must stay.
func Unmark(ctx context.Context, kubeconfig, node string, log *slog.Logger, serve func() error) error {
	return unmark(ctx, kubeconfig, node, log, serve, settle)
}

func unmark(ctx context.Context, kubeconfig, node string, log *slog.Logger, serve func() error, settle time.Duration) error {
	if !mesh.IsName(node) {
		return fmt.Errorf("take the label %s off this node: %q is not a node's name; set NODE_NAME", pod.ReadyLabel, node)
	}
	client, err := newClient(kubeconfig)
	if err != nil {
		return err
	}
	if err := serve(); err != nil {
		return err
	}
	if err := dropLabel(ctx, client, node, log); err != nil {
		return fmt.Errorf("take the label %s off node %s: %w", pod.ReadyLabel, node, err)
	}
	return awaitPods(ctx, client, node, log, serve, settle)
}

// newClient prepares a client that reads no mesh configuration.
func newClient(kubeconfig string) (*cache.Client, error) {
	config, err := cache.RESTConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	return cache.NewClient(config, mesh.ConfigRef{})
}

func dropLabel(ctx context.Context, c *cache.Client, name string, log *slog.Logger) error {
	var n node
	err := c.Get(ctx, nodePath(name), &n)
	// Without the right to read the node there never was a right to label it.
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		log.Info("the agent may not read the node, or it is gone: no label to remove", "event", "unmark-skipped", "error", err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	changed, err := setLabel(ctx, c, name, n, false)
	if changed {
		log.Info("label removed from the node", "event", "node-released", "label", pod.ReadyLabel)
	}
	return err
}

// awaitPods returns when no pod on the node selects the label, and none can be on its way there.
func awaitPods(ctx context.Context, c *cache.Client, node string, log *slog.Logger, serve func() error, settle time.Duration) error {
	var said []string
	for {
		pause(ctx, settle)
		if err := serve(); err != nil {
			return err
		}
		pods, err := selecting(ctx, c, node)
		if err != nil {
			return fmt.Errorf("find the pods on node %s that select the label %s: %w", node, pod.ReadyLabel, err)
		}
		if len(pods) == 0 {
			return nil
		}
		if !slices.Equal(pods, said) {
			log.Warn("detour stays until these pods have ended: they have no init container of their mesh and would start unmeshed", "event", "unmark-waiting", "pods", pods)
			said = pods
		}
	}
}

// selecting returns the names of the node's pods that select the label and have not ended.
func selecting(ctx context.Context, c *cache.Client, node string) (names []string, _ error) {
	var list struct {
		Items []struct {
			Metadata struct{ Namespace, Name string }
			Spec     struct{ NodeSelector map[string]string }
			Status   struct{ Phase string }
		}
	}
	// From the API server's cache, as all nodes may ask at once.
	if err := c.Get(ctx, "/api/v1/pods?resourceVersion=0&fieldSelector=spec.nodeName%3D"+node, &list); err != nil {
		return nil, err
	}
	for _, p := range list.Items {
		ended := p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed"
		if _, selects := p.Spec.NodeSelector[pod.ReadyLabel]; selects && !ended {
			names = append(names, p.Metadata.Namespace+"/"+p.Metadata.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}
