// Package pod reads from a Kubernetes pod what decides whether and how its traffic is redirected.
package pod

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// MirrorAnnotation marks the API server's copy of a static pod; its value is the UID under which the kubelet runs the pod.
const MirrorAnnotation = "kubernetes.io/config.mirror"

// ReadyLabel is on the nodes that can serve an ADD, with the value "true". The agent sets it. A pod that lost its mesh's init container at
// admission selects it: elsewhere nobody would redirect the pod.
const ReadyLabel = "detour.io/ready"

// Pod is what a mesh reads of a pod, as admission left it. At CNI ADD, its containers have no state yet: no mesh reads it.
type Pod struct {
	Namespace      string
	Name           string
	UID            string
	Annotations    map[string]string
	Labels         map[string]string
	InitContainers []Container
	Containers     []Container
	// Nameservers are those of the pod's own DNS configuration.
	Nameservers []string
	// SelectsReady says that the pod's node selector has ReadyLabel "true".
	SelectsReady bool
}

// Container is one container or init container of a pod.
type Container struct {
	Name string
	// RunAsUser and RunAsGroup are the container's own, or else the pod's; nil means that the image decides.
	RunAsUser, RunAsGroup *int64
	// NetAdmin says that the container may program the pod's network: it is privileged, or the capability was added.
	NetAdmin bool
	// Restarts marks a native sidecar: an init container with restartPolicy Always, which runs as long as the pod.
	Restarts bool
	// Ports are the declared container ports.
	Ports []uint16
	Args  []string
	// Env are the variables with a literal value, EnvFrom the names of those whose value comes from another object.
	Env     map[string]string
	EnvFrom []string
	// State is nil as long as the kubelet has reported nothing.
	State *State
}

// State is what the kubelet last reported of a container.
type State struct {
	// ID is the runtime's, behind the runtime's name: containerd://ID.
	ID       string
	Ready    bool
	Restarts int64
	// Why says why the container does not run, "" if it does.
	Why string
}

// String returns NAMESPACE/NAME.
func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// HasUID reports whether uid, as a container runtime passes it in K8S_POD_UID, names this pod. A static pod runs under the
// UID of its manifest, which its copy in the API carries as an annotation.
func (p Pod) HasUID(uid string) bool {
	return uid == p.UID || uid != "" && uid == p.Annotations[MirrorAnnotation]
}

// LongLived returns the containers that run as long as the pod: native sidecars, then all containers.
func (p Pod) LongLived() []Container {
	var all []Container
	for _, c := range p.InitContainers {
		if c.Restarts {
			all = append(all, c)
		}
	}
	return append(all, p.Containers...)
}

// SharesUser reports whether a long-lived container runs as the same user as c, which has one, or may do so as far as the pod
// tells. Containers that the mesh has injected don't count.
func (p Pod) SharesUser(c Container, injected func(Container) bool) bool {
	return slices.ContainsFunc(p.LongLived(), func(other Container) bool {
		return !injected(other) && (other.RunAsUser == nil || *other.RunAsUser == *c.RunAsUser)
	})
}

// Find returns the container or init container called name.
func (p Pod) Find(name string) (Container, bool) {
	for _, list := range [][]Container{p.Containers, p.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return c, true
			}
		}
	}
	return Container{}, false
}

// wire is the part of a v1 Pod's JSON that Parse reads.
type wire struct {
	Kind       string   `json:"kind"`
	APIVersion string   `json:"apiVersion"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
	Status     Status   `json:"status,omitzero"`
}

// Metadata is what Parse reads of a v1 Pod's metadata.
type Metadata struct {
	Namespace   string            `json:"namespace"`
	Name        string            `json:"name"`
	UID         string            `json:"uid"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// Spec is what Parse reads of a v1 Pod's spec.
type Spec struct {
	SecurityContext securityContext `json:"securityContext,omitzero"`
	InitContainers  []wireContainer `json:"initContainers,omitempty"`
	Containers      []wireContainer `json:"containers"`
	DNSConfig       wireDNSConfig   `json:"dnsConfig,omitzero"`
	NodeSelector    wireSelector    `json:"nodeSelector,omitzero"`
}

// Status is what Parse reads of a v1 Pod's status.
type Status struct {
	InitContainerStatuses []ContainerStatus `json:"initContainerStatuses,omitempty"`
	ContainerStatuses     []ContainerStatus `json:"containerStatuses,omitempty"`
}

// ContainerStatus is what Parse reads of a container's status, and when the container started.
type ContainerStatus struct {
	Name         string         `json:"name"`
	ContainerID  string         `json:"containerID,omitempty"`
	Ready        bool           `json:"ready,omitempty"`
	RestartCount int64          `json:"restartCount,omitempty"`
	State        ContainerState `json:"state,omitzero"`
}

// ContainerState has one field that is not nil.
type ContainerState struct {
	Running    *Running `json:"running,omitempty"`
	Waiting    *Reason  `json:"waiting,omitempty"`
	Terminated *Reason  `json:"terminated,omitempty"`
}

// Running is the state of a running container.
type Running struct {
	StartedAt string `json:"startedAt,omitempty"` // RFC 3339
}

// Reason says in one word why a container does not run.
type Reason struct {
	Reason string `json:"reason,omitempty"`
}

type wireContainer struct {
	Name            string          `json:"name"`
	RestartPolicy   string          `json:"restartPolicy,omitempty"`
	SecurityContext securityContext `json:"securityContext,omitzero"`
	Ports           []wirePort      `json:"ports,omitempty"`
	Args            []string        `json:"args,omitempty"`
	Env             []wireVariable  `json:"env,omitempty"`
}

type wireDNSConfig struct {
	Nameservers []string `json:"nameservers,omitempty"`
}

type wireSelector struct {
	Ready string `json:"detour.io/ready,omitempty"` // ReadyLabel
}

type wirePort struct {
	ContainerPort uint16 `json:"containerPort"`
}

type wireVariable struct {
	Name      string    `json:"name"`
	Value     string    `json:"value,omitempty"`
	ValueFrom *struct{} `json:"valueFrom,omitempty"` // whether there is one
}

type securityContext struct {
	RunAsUser    *int64           `json:"runAsUser,omitempty"`
	RunAsGroup   *int64           `json:"runAsGroup,omitempty"`
	Privileged   bool             `json:"privileged,omitempty"`
	Capabilities wireCapabilities `json:"capabilities,omitzero"`
}

type wireCapabilities struct {
	Add []string `json:"add,omitempty"`
}

func (c securityContext) netAdmin() bool {
	return c.Privileged || slices.Contains(c.Capabilities.Add, "NET_ADMIN") || slices.Contains(c.Capabilities.Add, "ALL")
}

// or completes a container's context from the pod's.
func (c securityContext) or(pod securityContext) securityContext {
	if c.RunAsUser == nil {
		c.RunAsUser = pod.RunAsUser
	}
	if c.RunAsGroup == nil {
		c.RunAsGroup = pod.RunAsGroup
	}
	return c
}

// Parse reads a v1 Pod from its JSON. It fails on anything that is not a Pod with a namespace, a name and a container.
func Parse(data []byte) (Pod, error) {
	p, err := ParseNew(data)
	if err == nil && (p.Namespace == "" || p.Name == "") {
		err = errors.New("decode Pod: it lacks a namespace or a name")
	}
	return p, err
}

// ParseNew is Parse for a pod that is being created: it may lack a namespace and a name.
func ParseNew(data []byte) (Pod, error) {
	var w wire
	if err := json.Unmarshal(data, &w); err != nil {
		return Pod{}, fmt.Errorf("decode Pod: %w", err)
	}
	if w.Kind != "Pod" || w.APIVersion != "v1" {
		return Pod{}, fmt.Errorf("decode Pod: got %q of %q, want \"Pod\" of \"v1\"", w.Kind, w.APIVersion)
	}
	if len(w.Spec.Containers) == 0 {
		return Pod{}, errors.New("decode Pod: it lacks a container")
	}
	return Pod{
		Namespace:      w.Metadata.Namespace,
		Name:           w.Metadata.Name,
		UID:            w.Metadata.UID,
		Annotations:    w.Metadata.Annotations,
		Labels:         w.Metadata.Labels,
		InitContainers: w.containers(w.Spec.InitContainers, w.Status.InitContainerStatuses),
		Containers:     w.containers(w.Spec.Containers, w.Status.ContainerStatuses),
		Nameservers:    w.Spec.DNSConfig.Nameservers,
		SelectsReady:   w.Spec.NodeSelector.Ready == "true",
	}, nil
}

func (w wire) containers(list []wireContainer, statuses []ContainerStatus) []Container {
	var out []Container
	for _, c := range list {
		security := c.SecurityContext.or(w.Spec.SecurityContext)
		facts := Container{
			Name:       c.Name,
			RunAsUser:  security.RunAsUser,
			RunAsGroup: security.RunAsGroup,
			NetAdmin:   security.netAdmin(),
			Restarts:   c.RestartPolicy == "Always",
			Args:       c.Args,
			State:      stateOf(c.Name, statuses),
		}
		for _, p := range c.Ports {
			facts.Ports = append(facts.Ports, p.ContainerPort)
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil {
				facts.EnvFrom = append(facts.EnvFrom, e.Name)
				continue
			}
			if facts.Env == nil {
				facts.Env = map[string]string{}
			}
			facts.Env[e.Name] = e.Value
		}
		out = append(out, facts)
	}
	return out
}

func stateOf(name string, statuses []ContainerStatus) *State {
	i := slices.IndexFunc(statuses, func(s ContainerStatus) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	s := statuses[i]
	state := &State{ID: s.ContainerID, Ready: s.Ready, Restarts: s.RestartCount}
	switch {
	case s.State.Waiting != nil:
		state.Why = cmp.Or(s.State.Waiting.Reason, "waiting")
	case s.State.Terminated != nil:
		state.Why = cmp.Or(s.State.Terminated.Reason, "terminated")
	}
	return state
}
