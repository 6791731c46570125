package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	pollTime   = 250 * time.Millisecond
	createTime = 30 * time.Second
	// removeTime is how long the kubelet may take to end a pod: detourctl's grace and more.
	removeTime = (graceTime + 10) * time.Second
	// statusTime is how long after a container's end its status may lack it.
	statusTime = 30 * time.Second
)

// stderrMark begins each line that detourctl writes to standard error: a container's log has both streams in one.
const stderrMark = "\x1e"

// session runs detourctl in containers, one after the other.
type session struct {
	client
	stdout, stderr io.Writer
	startTime      time.Duration
}

// place is a container of a pod's, an ephemeral one perhaps.
type place struct{ namespace, pod, container string }

// inPod runs detourctl in a pod of its own, which is gone afterwards, whatever happens. The error is an exitCode if detourctl
// ran.
func (s session) inPod(ctx context.Context, pod *corev1.Pod) error {
	s.sweep(ctx, pod.Namespace)
	creating, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTime) // a request that is cancelled may still create
	defer cancel()
	if err := s.create(creating, pod); err != nil {
		if creating.Err() != nil {
			_ = s.remove(ctx, pod, false) // nobody knows whether there is one
		}
		return refused(err, pod)
	}
	err := s.follow(ctx, place{pod.Namespace, pod.Name, pod.Spec.Containers[0].Name})
	ran := err == nil || errors.As(err, new(exitCode))
	left := s.remove(ctx, pod, ran)
	switch {
	case left == nil:
		return err
	case ran || ctx.Err() != nil:
		return left
	}
	return fmt.Errorf("%w; and %w", err, left)
}

// inside runs detourctl in an ephemeral container of the pod. The error is an exitCode if detourctl ran.
func (s session) inside(ctx context.Context, pod *corev1.Pod, container corev1.EphemeralContainer) error {
	if err := s.addContainer(ctx, pod, container); err != nil {
		return fmt.Errorf("add an ephemeral container to pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return s.follow(ctx, place{pod.Namespace, pod.Name, container.Name})
}

// follow waits until the container starts, prints its output until it ends, and returns its exit code.
func (s session) follow(ctx context.Context, in place) error {
	starting, cancel := context.WithTimeoutCause(ctx, s.startTime, errSlow)
	defer cancel()
	started := func(state corev1.ContainerState) bool { return state.Running != nil || state.Terminated != nil }
	if _, err := s.await(starting, in, started); err != nil {
		if errors.Is(context.Cause(starting), errSlow) {
			return s.whyNot(ctx, in, s.startTime)
		}
		return err
	}
	if err := s.print(ctx, in); err != nil {
		return fmt.Errorf("read detourctl's output: %w", err)
	}
	ending, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	state, err := s.await(ending, in, func(state corev1.ContainerState) bool { return state.Terminated != nil })
	if err != nil {
		return err
	}
	if code := state.Terminated.ExitCode; code != 0 {
		return exitCode(code)
	}
	return nil
}

// await asks for the container's state until it is done, or can't become so.
func (s session) await(ctx context.Context, in place, done func(corev1.ContainerState) bool) (corev1.ContainerState, error) {
	for {
		pod, err := s.pod(ctx, in.namespace, in.pod)
		switch {
		case ctx.Err() != nil:
			return corev1.ContainerState{}, ctx.Err()
		case err != nil:
			return corev1.ContainerState{}, missing(err, reference{"pod", in.namespace, in.pod})
		}
		if err := stuck(pod, in); err != nil {
			return corev1.ContainerState{}, err
		}
		if state := in.state(pod); done(state) {
			return state, nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollTime):
		}
	}
}

// print copies the container's output, line by line, to the streams to which detourctl wrote it.
func (s session) print(ctx context.Context, in place) error {
	log, err := s.log(ctx, in)
	if err != nil {
		return err
	}
	defer log.Close()
	lines := bufio.NewReader(log)
	for {
		line, err := lines.ReadString('\n')
		to := s.stdout
		if marked, ok := strings.CutPrefix(line, stderrMark); ok {
			to, line = s.stderr, marked
		}
		if _, err := io.WriteString(to, line); err != nil {
			return err
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// remove deletes the pod, also after a signal, and returns when it is gone. Before its end, detourctl gets time to remove what it made.
func (s session) remove(ctx context.Context, pod *corev1.Pod, ended bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTime+removeTime)
	defer cancel()
	if !ended {
		waiting, cancel := context.WithTimeout(ctx, removeTime)
		defer cancel()
		if s.removeGently(waiting, pod) {
			return nil
		}
	}
	if err := s.delete(ctx, pod, new(int64(0))); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("pod %s/%s is left behind, delete it: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// removeGently reports whether the pod is gone in time. It isn't if the node does not answer.
func (s session) removeGently(ctx context.Context, pod *corev1.Pod) (gone bool) {
	err := s.delete(ctx, pod, nil)
	for err == nil && ctx.Err() == nil {
		time.Sleep(pollTime)
		_, err = s.pod(ctx, pod.Namespace, pod.Name)
	}
	return apierrors.IsNotFound(err)
}

// sweep deletes what earlier runs left that could not delete it: pods that the kubelet ended at their deadline. Who may not list
// pods leaves them to others.
func (s session) sweep(ctx context.Context, namespace string) {
	var pods corev1.PodList
	tools := metav1.ListOptions{LabelSelector: toolKey + "=" + toolName, FieldSelector: "status.phase=Failed"}
	if s.get(ctx, path("v1", namespace, "pods", ""), &pods, tools) != nil {
		return
	}
	for _, pod := range pods.Items {
		if pod.Status.Reason == deadlineExceeded {
			_ = s.delete(ctx, &pod, nil)
		}
	}
}
