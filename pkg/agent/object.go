package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// podObject is a pod as the reflector hands it to its store: what the agent keeps of it, and of its metadata what the
// reflector reads.
type podObject struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	entry entry
}

// DeepCopyObject makes a podObject a runtime.Object. Only the metadata is copied: nobody changes the rest.
func (p *podObject) DeepCopyObject() runtime.Object {
	out := *p
	p.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// podFacts is what the agent itself reads of a v1 Pod's JSON.
type podFacts struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Namespace         string            `json:"namespace"`
		Name              string            `json:"name"`
		UID               types.UID         `json:"uid"`
		ResourceVersion   string            `json:"resourceVersion"`
		Annotations       map[string]string `json:"annotations"`
		Labels            map[string]string `json:"labels"`
		DeletionTimestamp *string           `json:"deletionTimestamp"`
		OwnerReferences   []struct {
			Controller bool `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
	Status podStatus `json:"status"`
}

type podStatus struct {
	Phase  string `json:"phase"`
	PodIPs []struct {
		IP string `json:"ip"`
	} `json:"podIPs"`
	InitContainerStatuses []containerStatus `json:"initContainerStatuses"`
	ContainerStatuses     []containerStatus `json:"containerStatuses"`
}

type containerStatus struct {
	State struct {
		Running *struct {
			StartedAt metav1.Time `json:"startedAt"`
		} `json:"running"`
	} `json:"state"`
}

// runningSince is when the latest of the containers that run now was started; zero if none runs.
func (s podStatus) runningSince() time.Time {
	var latest time.Time
	for _, list := range [][]containerStatus{s.InitContainerStatuses, s.ContainerStatuses} {
		for _, c := range list {
			if r := c.State.Running; r != nil && r.StartedAt.After(latest) {
				latest = r.StartedAt.Time
			}
		}
	}
	return latest
}

// mostKept is the length of the longest JSON of a pod that is kept, in bytes; an ordinary one has one or two thousand. It
// bounds the cache by the number of pods on a node, whatever their owners write into them.
const mostKept = 64 << 10

// decode is a podDecoder. It keeps little: a pod may have megabytes that no mesh looks at.
func (c *podCache) decode(data []byte) (runtime.Object, error) {
	var f podFacts
	err := json.Unmarshal(data, &f)
	if f.Kind == "Status" { // which has a status that is no pod's
		status := &metav1.Status{}
		return status, json.Unmarshal(data, status)
	}
	if err != nil {
		return nil, fmt.Errorf("decode a pod: %w", err)
	}
	m := f.Metadata
	p := &podObject{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}}
	if end, ok := m.Annotations[metav1.InitialEventsAnnotationKey]; ok { // by which a stream says that the list is complete
		p.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: end}
	}
	trimmed, err := pod.Trim(data, c.dialect.Sidecar, c.dialect.Reads)
	if err != nil {
		return nil, fmt.Errorf("trim pod %s/%s: %w", m.Namespace, m.Name, err)
	}
	if len(trimmed) > mostKept {
		trimmed = nil
	}
	p.entry = entry{
		namespace:   m.Namespace,
		name:        m.Name,
		uid:         string(m.UID),
		mirrorOf:    m.Annotations[pod.MirrorAnnotation],
		config:      c.dialect.ConfigFor(m.Annotations, m.Labels).Name,
		json:        trimmed,
		hostNetwork: f.Spec.HostNetwork,
		deleting:    m.DeletionTimestamp != nil,
		phase:       f.Status.Phase,
		since:       f.Status.runningSince(),
	}
	for _, o := range m.OwnerReferences {
		p.entry.controlled = p.entry.controlled || o.Controller
	}
	for _, ip := range f.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.entry.addresses = append(p.entry.addresses, addr.Unmap())
		}
	}
	return p, nil
}

type podList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []podObject
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

// newScheme knows the configuration's kind in each of its versions, and what the API server says of errors.
func newScheme(ref mesh.ConfigRef) *runtime.Scheme {
	s := runtime.NewScheme()
	core := schema.GroupVersion{Version: "v1"}
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
