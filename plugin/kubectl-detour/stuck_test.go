package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func TestWhyDetourctlDoesNotRun(t *testing.T) {
	for status, want := range map[string]string{
		"phase: Pending": "",
		"containerStatuses: [{name: detourctl, state: {waiting: {reason: ContainerCreating}}}]":                                    "",
		"containerStatuses: [{name: detourctl, state: {running: {}}}]":                                                             "",
		"phase: Failed, containerStatuses: [{name: detourctl, state: {terminated: {exitCode: 1, reason: Error}}}]":                 "",
		"containerStatuses: [{name: other, state: {waiting: {reason: ErrImagePull}}}]":                                             "",
		"containerStatuses: [{name: detourctl, image: 'x:1', state: {waiting: {reason: ErrImagePull, message: no such host}}}]":    "the node can't start image x:1: ErrImagePull: no such host",
		"ephemeralContainerStatuses: [{name: detourctl, image: 'x:1', state: {waiting: {reason: ImagePullBackOff, message: so}}}]": "image x:1: ImagePullBackOff: so",
		"containerStatuses: [{name: detourctl, image: 'x:1', state: {terminated: {reason: StartError, message: no such file}}}]":   "image x:1 does not start /detourctl: pass --image with one that has it: no such file",
		"containerStatuses: [{name: detourctl, state: {terminated: {exitCode: 137, reason: OOMKilled}}}]":                          "ran out of the node's memory",
		"phase: Failed, reason: OutOfpods, message: 'Node is full.'":                                                               "node n1 ended pod shop/x: OutOfpods: Node is full.",
		"phase: Failed, reason: DeadlineExceeded, containerStatuses: [{name: detourctl, state: {terminated: {exitCode: 143}}}]":    "detourctl was ended at its pod's deadline",
	} {
		var p corev1.Pod
		if err := yaml.UnmarshalStrict([]byte("{metadata: {namespace: shop, name: x}, spec: {nodeName: n1}, status: {"+status+"}}"), &p); err != nil {
			t.Fatal(status, err)
		}
		err := stuck(&p, place{"shop", "x", "detourctl"})
		if want == "" && err != nil {
			t.Errorf("%s: got %v", status, err)
		} else if want != "" {
			wantError(t, status, err, want)
		}
	}
}
