package agent

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/detour-cni/detour/pkg/mesh"
)

// podObject is as much of a v1 Pod as the agent reads of the API server's JSON; the rest is never decoded.
type podObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              podSpec   `json:"spec"`
	Status            podStatus `json:"status,omitzero"`
}

type podSpec struct {
	HostNetwork     bool        `json:"hostNetwork,omitempty"`
	SecurityContext *security   `json:"securityContext,omitempty"`
	InitContainers  []container `json:"initContainers,omitempty"`
	Containers      []container `json:"containers"`
	DNSConfig       *dnsConfig  `json:"dnsConfig,omitempty"`
}

type dnsConfig struct {
	Nameservers []string `json:"nameservers,omitempty"`
}

// container has the fields that pod.Parse reads.
type container struct {
	Name            string     `json:"name"`
	RestartPolicy   string     `json:"restartPolicy,omitempty"`
	SecurityContext *security  `json:"securityContext,omitempty"`
	Ports           []port     `json:"ports,omitempty"`
	Args            []string   `json:"args,omitempty"`
	Env             []variable `json:"env,omitempty"`
}

type security struct {
	RunAsUser    *int64        `json:"runAsUser,omitempty"`
	RunAsGroup   *int64        `json:"runAsGroup,omitempty"`
	Privileged   bool          `json:"privileged,omitempty"`
	Capabilities *capabilities `json:"capabilities,omitempty"`
}

type capabilities struct {
	Add []string `json:"add,omitempty"`
}

type port struct {
	ContainerPort int32 `json:"containerPort"`
}

type variable struct {
	Name      string    `json:"name"`
	Value     string    `json:"value,omitempty"`
	ValueFrom *struct{} `json:"valueFrom,omitempty"` // only that there is one
}

type podStatus struct {
	Phase                 string            `json:"phase,omitempty"`
	PodIPs                []podIP           `json:"podIPs,omitempty"`
	InitContainerStatuses []containerStatus `json:"initContainerStatuses,omitempty"`
	ContainerStatuses     []containerStatus `json:"containerStatuses,omitempty"`
}

type podIP struct {
	IP string `json:"ip"`
}

type containerStatus struct {
	State struct {
		Running *struct {
			StartedAt metav1.Time `json:"startedAt"`
		} `json:"running"`
	} `json:"state"`
}

// DeepCopyObject makes a podObject a runtime.Object. Only the metadata is copied: nobody changes the rest.
func (p *podObject) DeepCopyObject() runtime.Object {
	out := *p
	p.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// runningSince is when the latest of the containers that run now was started; zero if none runs.
func (p *podObject) runningSince() time.Time {
	var latest time.Time
	for _, list := range [][]containerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range list {
			if r := c.State.Running; r != nil && r.StartedAt.After(latest) {
				latest = r.StartedAt.Time
			}
		}
	}
	return latest
}

// lastApplied is a copy of the whole pod in one of its annotations.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// trimmed returns the JSON of what pod.Parse and the dialect's Decide read of the pod. Arguments and variables are those
// of the sidecar: no mesh reads another container's, and they can be long.
func (p *podObject) trimmed(sidecar string) ([]byte, error) {
	out := podObject{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Spec: p.Spec}
	out.ObjectMeta = metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels}
	out.Annotations = maps.Clone(p.Annotations)
	delete(out.Annotations, lastApplied)
	out.Spec.InitContainers = withoutWords(p.Spec.InitContainers, sidecar)
	out.Spec.Containers = withoutWords(p.Spec.Containers, sidecar)
	data, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("trim pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return data, nil
}

func withoutWords(list []container, sidecar string) []container {
	var out []container
	for _, c := range list {
		if c.Name != sidecar {
			c.Args, c.Env = nil, nil
		}
		out = append(out, c)
	}
	return out
}

type podList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []podObject `json:"items"`
}

// DeepCopyObject makes a podList a runtime.Object.
func (l *podList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

// configObject is a mesh's configuration, of whatever kind: its metadata and its JSON.
type configObject struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	json              []byte
}

// UnmarshalJSON keeps the JSON as it is.
func (c *configObject) UnmarshalJSON(data []byte) error {
	type plain configObject // without this method
	var p plain
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	*c = configObject(p)
	c.json = append([]byte(nil), data...)
	return nil
}

// DeepCopyObject makes a configObject a runtime.Object.
func (c *configObject) DeepCopyObject() runtime.Object {
	out := *c
	c.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// as returns the JSON with the kind and version that the API server leaves out of a list's items.
func (c *configObject) as(kind schema.GroupVersionKind) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(c.json, &fields); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kind.Kind, err)
	}
	version, name := kind.ToAPIVersionAndKind()
	for field, value := range map[string]string{"apiVersion": version, "kind": name} {
		quoted, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		fields[field] = quoted
	}
	return json.Marshal(fields)
}

type configList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []configObject `json:"items"`
}

// DeepCopyObject makes a configList a runtime.Object.
func (l *configList) DeepCopyObject() runtime.Object {
	out := *l
	return &out
}

// newScheme knows pods and the configuration's kind in each of its versions.
func newScheme(ref mesh.ConfigRef) *runtime.Scheme {
	s := runtime.NewScheme()
	core := schema.GroupVersion{Version: "v1"}
	s.AddKnownTypeWithName(core.WithKind("Pod"), &podObject{})
	s.AddKnownTypeWithName(core.WithKind("PodList"), &podList{})
	metav1.AddToGroupVersion(s, core)
	for _, v := range ref.Versions {
		gv := schema.GroupVersion{Group: ref.Group, Version: v}
		s.AddKnownTypeWithName(gv.WithKind(ref.Kind), &configObject{})
		s.AddKnownTypeWithName(gv.WithKind(ref.Kind+"List"), &configList{})
		if gv != core {
			metav1.AddToGroupVersion(s, gv)
		}
	}
	return s
}
