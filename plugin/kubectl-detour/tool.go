package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/detour-cni/detour/pkg/build"
)

// Where detour's agent is, and where detourctl's pod runs in a cluster without detour.
const (
	agentNamespace    = "detour-system"
	agentName         = "detour-agent"
	fallbackNamespace = "kube-system"
)

const (
	// The label of detourctl's pods.
	toolKey, toolName = "app.kubernetes.io/name", "kubectl-detour"
	// graceTime is how long detourctl has to remove what it made, in seconds.
	graceTime = 5
	// When detourctl is ended even if kubectl detour can't end it: the kubelet does.
	answerDeadline, streamDeadline = 10 * time.Minute, time.Hour
)

// tool is where detourctl comes from and where its pod runs.
type tool struct {
	namespace   string
	image       string
	pullPolicy  corev1.PullPolicy
	pullSecrets []corev1.LocalObjectReference
}

// tool finds image and namespace, as far as the flags leave them open.
func (o *options) tool(ctx context.Context, c client) (tool, error) {
	t := tool{namespace: o.toolNamespace, image: o.image}
	if t.image != "" && t.namespace != "" {
		return t, nil
	}
	var agent struct {
		Spec struct{ Template corev1.PodTemplateSpec }
	}
	err := c.get(ctx, path("apps/v1", agentNamespace, "daemonsets", agentName), &agent)
	containers := agent.Spec.Template.Spec.Containers
	if err == nil && len(containers) > 0 {
		t.namespace = cmp.Or(t.namespace, agentNamespace)
		if t.image == "" {
			t.image, t.pullPolicy = containers[0].Image, containers[0].ImagePullPolicy
			if t.namespace == agentNamespace {
				t.pullSecrets = agent.Spec.Template.Spec.ImagePullSecrets
			}
		}
		return t, nil
	}
	t.image = cmp.Or(t.image, build.Image())
	if t.image == "" {
		return t, fmt.Errorf("no image for detourctl: pass --image, such as that of your build of detour (%w)",
			cmp.Or(err, errors.New("daemonset/"+agentName+" has no container")))
	}
	var namespace corev1.Namespace
	t.namespace = fallbackNamespace
	if err := c.get(ctx, path("v1", "", "namespaces", agentNamespace), &namespace); err == nil {
		t.namespace = agentNamespace
	} else if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return t, fmt.Errorf("get namespace %s: %w", agentNamespace, err)
	}
	return t, nil
}

// podFor is detourctl's pod for a verb. Nothing but the node's kubelet decides whether it runs: not the scheduler, no taint, no
// network.
func (t tool) podFor(v verb, of target, args []string, env []corev1.EnvVar) *corev1.Pod {
	r, _ := v.rightsFor(of, args)
	var capabilities []corev1.Capability
	for name := range strings.FieldsSeq(r.capabilities) {
		capabilities = append(capabilities, corev1.Capability(name))
	}
	deadline := answerDeadline
	if given(args, v.stream...) {
		deadline = streamDeadline
	}
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: t.namespace,
			Name:      toolName + "-" + v.name + "-" + rand.String(5),
			Labels:    map[string]string{toolKey: toolName},
		},
		Spec: corev1.PodSpec{
			NodeName:                      of.node,
			HostNetwork:                   true,
			HostPID:                       r.processes,
			RestartPolicy:                 corev1.RestartPolicyNever,
			ActiveDeadlineSeconds:         new(int64(deadline.Seconds())),
			TerminationGracePeriodSeconds: new(int64(graceTime)),
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
			Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			ImagePullSecrets:              t.pullSecrets,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsUser:      new(int64(0)),
				RunAsGroup:     new(int64(0)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:            "detourctl",
				Image:           t.image,
				ImagePullPolicy: t.pullPolicy,
				Command:         slices.Concat([]string{"/detourctl", v.name}, v.targetArgs(of), v.fixed, without(args, fromNode)),
				Env:             env,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false),
					ReadOnlyRootFilesystem:   new(true),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
				},
			}},
		},
	}
	for i, folder := range strings.Fields(r.folders) {
		mount(&p.Spec, fmt.Sprint("host-", i), folder)
	}
	return p
}

// mount lets the pod's container read a folder of the host. It must be there: the kubelet would make it, and leave it.
func mount(s *corev1.PodSpec, name, folder string) {
	s.Volumes = append(s.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: folder, Type: new(corev1.HostPathDirectory)},
	}})
	c := &s.Containers[0]
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: folder, ReadOnly: true})
}

// insideUser is no mesh's proxy, whose user and group redirection leaves out.
const insideUser = 65532

// containerFor is the ephemeral container in which a verb runs inside a pod. It fits the Pod Security Standard restricted.
func (t tool) containerFor(v verb, args []string, env []corev1.EnvVar) corev1.EphemeralContainer {
	return corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name:            "detour-" + v.name + "-" + rand.String(5),
		Image:           t.image,
		ImagePullPolicy: t.pullPolicy,
		Command:         slices.Concat([]string{"/detourctl", v.name}, args),
		Env:             env,
		SecurityContext: &corev1.SecurityContext{
			RunAsNonRoot:             new(true),
			RunAsUser:                new(int64(insideUser)),
			RunAsGroup:               new(int64(insideUser)),
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}}
}
