package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// errSlow is the cause of the end of waiting for a start.
var errSlow = errors.New("the container did not start in time")

// deadlineExceeded is the reason of a pod that ended at its activeDeadlineSeconds.
const deadlineExceeded = "DeadlineExceeded"

// hopeless are the reasons for which a container does not start, or not before somebody does something.
var hopeless = []string{
	"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError",
	"CreateContainerConfigError", "CreateContainerError", "RunContainerError",
}

// unstarted are the reasons for which a container ended without having run.
var unstarted = []string{"StartError", "ContainerCannotRun"}

func (p place) status(pod *corev1.Pod) corev1.ContainerStatus {
	all := slices.Concat(pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses)
	if i := slices.IndexFunc(all, func(s corev1.ContainerStatus) bool { return s.Name == p.container }); i >= 0 {
		return all[i]
	}
	return corev1.ContainerStatus{}
}

func (p place) state(pod *corev1.Pod) corev1.ContainerState { return p.status(pod).State }

// stuck says why detourctl will never run in the container, or why what ended it wasn't itself.
func stuck(pod *corev1.Pod, in place) error {
	status := in.status(pod)
	waiting, ended := status.State.Waiting, status.State.Terminated
	switch {
	case pod.Status.Reason == deadlineExceeded:
		return errors.New("detourctl was ended at its pod's deadline: run it again")
	case waiting != nil && slices.Contains(hopeless, waiting.Reason):
		return fmt.Errorf("the node can't start image %s: %s: %s", status.Image, waiting.Reason, waiting.Message)
	case ended != nil && slices.Contains(unstarted, ended.Reason):
		return fmt.Errorf("image %s does not start /detourctl: pass --image with one that has it: %s", status.Image, ended.Message)
	case ended != nil && ended.Reason == "OOMKilled":
		return errors.New("detourctl ran out of the node's memory")
	case pod.DeletionTimestamp != nil:
		return fmt.Errorf("pod %s/%s was deleted before detourctl had ended", pod.Namespace, pod.Name)
	case ended == nil && pod.Status.Phase == corev1.PodFailed:
		return fmt.Errorf("node %s ended pod %s/%s: %s: %s",
			pod.Spec.NodeName, pod.Namespace, pod.Name, pod.Status.Reason, pod.Status.Message)
	}
	return nil
}

// whyNot says why a container has not started in time, as far as node and Events tell.
func (s session) whyNot(ctx context.Context, in place, after time.Duration) error {
	pod, err := s.pod(ctx, in.namespace, in.pod)
	if err != nil {
		return missing(err, reference{"pod", in.namespace, in.pod})
	}
	why := []string{fmt.Sprintf("pod %s/%s did not start within %s", in.namespace, in.pod, after)}
	var node corev1.Node
	if s.get(ctx, path("v1", "", "nodes", pod.Spec.NodeName), &node) == nil {
		why = append(why, unready(&node)...)
	}
	var events corev1.EventList
	ofPod := metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(pod.UID)}
	if s.get(ctx, path("v1", in.namespace, "events", ""), &events, ofPod) == nil {
		why = append(why, lastWarning(events.Items)...)
	}
	if waiting := in.state(pod).Waiting; len(why) == 1 && waiting != nil {
		why = append(why, strings.TrimSpace(waiting.Reason+" "+waiting.Message))
	}
	if len(why) == 1 {
		why = append(why, "the kubelet of node "+pod.Spec.NodeName+" has not begun")
	}
	return errors.New(strings.Join(why, ": "))
}

func unready(node *corev1.Node) []string {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			return []string{fmt.Sprintf("node %s is not ready (%s)", node.Name, c.Message)}
		}
	}
	return nil
}

func lastWarning(events []corev1.Event) []string {
	events = slices.DeleteFunc(events, func(e corev1.Event) bool { return e.Type != corev1.EventTypeWarning })
	if len(events) == 0 {
		return nil
	}
	last := slices.MaxFunc(events, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return []string{last.Message}
}

// refused says why the API server does not create the pod.
func refused(err error, pod *corev1.Pod) error {
	if strings.Contains(err.Error(), "violates PodSecurity") {
		return fmt.Errorf("namespace %[1]s does not admit detourctl's pod: choose another by --tool-namespace, or label it: "+
			"kubectl label namespace %[1]s pod-security.kubernetes.io/enforce=privileged (%[2]w)", pod.Namespace, err)
	}
	return fmt.Errorf("create detourctl's pod in namespace %s: %w", pod.Namespace, err)
}
