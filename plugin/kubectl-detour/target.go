package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// target is a pod, or a node if pod is nil.
type target struct {
	node   string
	pod    *corev1.Pod
	chosen bool // from a workload
}

func (t target) kind() string {
	if t.pod == nil {
		return "node"
	}
	return "pod"
}

func (t target) String() string {
	if t.pod == nil {
		return "node " + t.node
	}
	return fmt.Sprintf("pod %s/%s on node %s", t.pod.Namespace, t.pod.Name, t.node)
}

// uid is the one under which the kubelet runs the pod: a static pod's is the hash of its manifest, not the UID of its copy in
// the API.
func (t target) uid() string {
	if hash := t.pod.Annotations["kubernetes.io/config.hash"]; t.pod.Annotations[corev1.MirrorPodAnnotationKey] != "" && hash != "" {
		return hash
	}
	return string(t.pod.UID)
}

// workloads are the kinds that select pods by spec.selector. The last name is the resource.
var workloads = []struct {
	names        []string
	groupVersion string
}{
	{[]string{"deploy", "deployment", "deployments"}, "apps/v1"},
	{[]string{"sts", "statefulset", "statefulsets"}, "apps/v1"},
	{[]string{"ds", "daemonset", "daemonsets"}, "apps/v1"},
	{[]string{"rs", "replicaset", "replicasets"}, "apps/v1"},
	{[]string{"job", "jobs"}, "batch/v1"},
}

// The names of the kinds that are no workloads.
var (
	podNames     = []string{"pod", "po", "pods"}
	nodeNames    = []string{"node", "no", "nodes"}
	serviceNames = []string{"svc", "service", "services"}
)

func workloadNames() string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.names[0])
	}
	return strings.Join(names, ", ")
}

// reference is KIND/NAME or KIND/NAMESPACE/NAME. A NAME alone is a pod's, as for kubectl exec.
type reference struct{ kind, namespace, name string }

func (r reference) String() string {
	if slices.Contains(nodeNames, r.kind) {
		return "node " + r.name
	}
	return fmt.Sprintf("%s %s/%s", r.kind, r.namespace, r.name)
}

func parseReference(text, namespace string) (reference, error) {
	r := reference{kind: "pod", namespace: namespace, name: text}
	parts := strings.Split(text, "/")
	switch len(parts) {
	case 1:
	case 2:
		r.kind, r.name = parts[0], parts[1]
	case 3:
		r.kind, r.namespace, r.name = parts[0], parts[1], parts[2]
	}
	if len(parts) > 3 || slices.Contains(parts, "") || slices.Contains(nodeNames, r.kind) && len(parts) > 2 {
		return r, fmt.Errorf("%q is neither KIND/NAME nor KIND/NAMESPACE/NAME", text)
	}
	for _, name := range []string{r.namespace, r.name} {
		if wrong := content.IsPathSegmentName(name); wrong != nil {
			return r, fmt.Errorf("%q is no name: it %s", name, wrong[0])
		}
	}
	return r, nil
}

// resolve finds what the reference names: a workload's pods if every is set, else one.
func (c client) resolve(ctx context.Context, r reference, every bool) ([]target, error) {
	if slices.Contains(nodeNames, r.kind) {
		return []target{{node: r.name}}, nil
	}
	if slices.Contains(podNames, r.kind) {
		pod, err := c.pod(ctx, r.namespace, r.name)
		if err != nil {
			return nil, missing(err, r)
		}
		if err := hasNetwork(pod); err != nil {
			return nil, err
		}
		return []target{{node: pod.Spec.NodeName, pod: pod}}, nil
	}
	pods, err := c.podsOf(ctx, r)
	if err != nil {
		return nil, err
	}
	pods, err = choose(pods, every)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	var targets []target
	for i := range pods {
		targets = append(targets, target{pods[i].Spec.NodeName, &pods[i], true})
	}
	return targets, nil
}

func (c client) podsOf(ctx context.Context, r reference) ([]corev1.Pod, error) {
	for _, w := range workloads {
		if !slices.Contains(w.names, r.kind) {
			continue
		}
		var object struct {
			Spec struct{ Selector *metav1.LabelSelector }
		}
		if err := c.get(ctx, path(w.groupVersion, r.namespace, w.names[len(w.names)-1], r.name), &object); err != nil {
			return nil, missing(err, r)
		}
		selector, err := metav1.LabelSelectorAsSelector(object.Spec.Selector)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
		var pods corev1.PodList
		err = c.get(ctx, path("v1", r.namespace, "pods", ""), &pods, metav1.ListOptions{LabelSelector: selector.String()})
		if err != nil {
			return nil, fmt.Errorf("list the pods of %s: %w", r, err)
		}
		return pods.Items, nil
	}
	return nil, fmt.Errorf("%s/%s: this is for pod, node, %s", r.kind, r.name, workloadNames())
}

// choose returns the pods that run, the ready ones first and then by name: all of them, or the first.
func choose(pods []corev1.Pod, every bool) ([]corev1.Pod, error) {
	all := len(pods)
	pods = slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool {
		return p.DeletionTimestamp != nil || hasNetwork(&p) != nil
	})
	if len(pods) == 0 {
		return nil, fmt.Errorf("none of its %d pods runs", all)
	}
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		if ready(a) != ready(b) {
			return map[bool]int{true: -1, false: 1}[ready(a)]
		}
		return strings.Compare(a.Name, b.Name)
	})
	if !every {
		pods = pods[:1]
	}
	return pods, nil
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// hasNetwork says why a pod has no network on a node that one could look at.
func hasNetwork(p *corev1.Pod) error {
	switch {
	case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		return fmt.Errorf("pod %s/%s has ended: its network is gone", p.Namespace, p.Name)
	case p.Spec.NodeName == "":
		return fmt.Errorf("pod %s/%s is on no node yet: kubectl describe pod says why", p.Namespace, p.Name)
	}
	return nil
}

// checkNode wants a node on which a pod can start. One that isn't ready may do: what isn't ready may be the network that
// detourctl is to look at. Who may not read nodes learns the same when the pod does not start.
func (c client) checkNode(ctx context.Context, name string) error {
	var node corev1.Node
	err := c.get(ctx, path("v1", "", "nodes", name), &node)
	if apierrors.IsForbidden(err) {
		return nil
	}
	if err != nil {
		return missing(err, reference{kind: "node", name: name})
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionUnknown {
			return fmt.Errorf("node %s can't start a pod: %s", name, condition.Message)
		}
	}
	return nil
}

// missing makes a sentence of an error of reading an object.
func missing(err error, what fmt.Stringer) error {
	if apierrors.IsNotFound(err) {
		return errors.New("there is no " + what.String())
	}
	return fmt.Errorf("get %s: %w", what, err)
}
