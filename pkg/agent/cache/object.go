package cache

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// podObject is a pod as the informer stores it: what the agent keeps, and the metadata that the informer reads.
type podObject struct {
	metav1.TypeMeta
	metav1.ObjectMeta
	pod nodepod.Pod
}

// DeepCopyObject makes a podObject a runtime.Object. It copies only the metadata: nobody changes the rest.
func (p *podObject) DeepCopyObject() runtime.Object {
	out := *p
	p.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// podFacts is what the agent reads of a v1 Pod's JSON: what the plugin reads, and more.
type podFacts struct {
	Kind     string `json:"kind"`
	Metadata struct {
		pod.Metadata
		ResourceVersion   string  `json:"resourceVersion"`
		DeletionTimestamp *string `json:"deletionTimestamp"`
		OwnerReferences   []struct {
			Controller bool `json:"controller"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		pod.Spec
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
	Status podStatus `json:"status"`
}

type podStatus struct {
	pod.Status
	Phase  string `json:"phase"`
	PodIPs []struct {
		IP string `json:"ip"`
	} `json:"podIPs"`
}

// runningSince is when the last of the running containers started; zero if none runs.
func (s podStatus) runningSince() time.Time {
	var latest time.Time
	for _, c := range slices.Concat(s.InitContainerStatuses, s.ContainerStatuses) {
		if c.State.Running == nil {
			continue
		}
		if at, err := time.Parse(time.RFC3339, c.State.Running.StartedAt); err == nil && at.After(latest) {
			latest = at
		}
	}
	return latest
}

// MaxKept is the length in bytes of the longest pod JSON that is kept; an ordinary one has one or two thousand. So only the number
// of a node's pods bounds the cache, whatever their owners write into them.
const MaxKept = 64 << 10

// decode is a podDecoder. It keeps little: a pod may have megabytes that no mesh reads.
func (c *Cache) decode(data []byte) (runtime.Object, error) {
	var f podFacts
	err := json.Unmarshal(data, &f)
	if f.Kind == "Status" { // its status isn't a pod's
		status := &metav1.Status{}
		return status, json.Unmarshal(data, status)
	}
	if err != nil {
		return nil, fmt.Errorf("decode a pod: %w", err)
	}
	m := f.Metadata
	p := &podObject{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: types.UID(m.UID), ResourceVersion: m.ResourceVersion}}
	if end, ok := m.Annotations[metav1.InitialEventsAnnotationKey]; ok { // a stream marks the end of its list with it
		p.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: end}
	}
	p.pod = f.pod(c.Dialect)
	trimmed, err := pod.Trimmed(m.Metadata, f.Spec.Spec, f.Status.Status, c.Dialect.Sidecar, c.Dialect.Reads)
	if err != nil {
		return nil, fmt.Errorf("trim pod %s: %w", p.pod, err)
	}
	if len(trimmed) <= MaxKept {
		p.pod.JSON = trimmed
	}
	return p, nil
}

func (f podFacts) pod(dialect mesh.Dialect) nodepod.Pod {
	m := f.Metadata
	p := nodepod.Pod{
		ID:          pod.ID{Namespace: m.Namespace, Name: m.Name, UID: m.UID},
		MirrorOf:    m.Annotations[pod.MirrorAnnotation],
		Config:      dialect.ConfigFor(m.Annotations, m.Labels).Name,
		HostNetwork: f.Spec.HostNetwork,
		Deleting:    m.DeletionTimestamp != nil,
		Phase:       f.Status.Phase,
		Since:       f.Status.runningSince(),
	}
	for _, o := range m.OwnerReferences {
		p.Controlled = p.Controlled || o.Controller
	}
	for _, ip := range f.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addresses = append(p.Addresses, addr.Unmap())
		}
	}
	return p
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

// configObject is a mesh's configuration of any kind: its metadata and its JSON.
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

// asKind returns an informer's transform, which adds to a configuration's JSON the kind and version that the API server leaves
// out of a list's items.
func asKind(kind schema.GroupVersionKind) cache.TransformFunc {
	return func(object any) (any, error) {
		c, ok := object.(*configObject)
		if !ok {
			return object, nil
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(c.json, &fields); err != nil {
			return nil, fmt.Errorf("decode %s: %w", kind.Kind, err)
		}
		version, name := kind.ToAPIVersionAndKind()
		fields["apiVersion"], fields["kind"] = json.RawMessage(strconv.Quote(version)), json.RawMessage(strconv.Quote(name))
		var err error
		c.json, err = json.Marshal(fields)
		return c, err
	}
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

// newScheme knows the configuration's kind in each of its versions, and the API server's Status.
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
