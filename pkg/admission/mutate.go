package admission

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// Mutate returns the JSON patch that makes the change, and warnings. pod is the JSON of a v1 Pod as admission sees it, which may
// lack a name and a namespace; namespace is the request's. The patch is empty if the pod is not injected or needs no change, so Mutate is
// idempotent; the order of changes does not matter. A pod that ADD would leave alone keeps its init container. Mutate fails on
// anything that is not a Pod, and on an unknown change.
func Mutate(o decision.Options, change Change, namespace string, pod []byte) ([]Op, []string, error) {
	s, err := read(o.Dialect, pod)
	if err != nil {
		return nil, nil, err
	}
	switch change {
	case RestrictSidecar:
		return s.restrict(), nil, nil
	case RemoveInit, NativeSidecar:
	default:
		return nil, nil, fmt.Errorf("admission: there is no change %q", change)
	}
	if s.raw.Spec.HostNetwork || !s.injected() {
		return nil, nil, nil
	}
	ops := s.removeInit()
	if change == NativeSidecar {
		ops = append(ops, s.native()...)
	}
	if why := cmp.Or(o.Excluded(namespace), s.mesh.LeavesAlone(s.pod)); why != "" {
		if ops == nil {
			return nil, nil, nil
		}
		return nil, []string{fmt.Sprintf("detour.io/%s changes nothing in pod %s: detour leaves the pod alone, because %s", change, s.name(namespace), why)}, nil
	}
	return append(ops, s.selectReady()...), nil, nil
}

// subject is a pod to be changed.
type subject struct {
	mesh mesh.Dialect
	pod  pod.Pod // loses its init container in removeInit
	raw  raw
}

// raw is what Mutate reads of a v1 Pod that no mesh reads.
type raw struct {
	Metadata struct {
		GenerateName string `json:"generateName"`
	} `json:"metadata"`
	Spec struct {
		HostNetwork    bool              `json:"hostNetwork"`
		NodeSelector   map[string]string `json:"nodeSelector"`
		InitContainers []rawContainer    `json:"initContainers"`
		Containers     []rawContainer    `json:"containers"`
	} `json:"spec"`
}

type rawContainer struct {
	SecurityContext *struct {
		AllowPrivilegeEscalation *bool     `json:"allowPrivilegeEscalation"`
		RunAsNonRoot             *bool     `json:"runAsNonRoot"`
		Capabilities             *struct{} `json:"capabilities"`
		SeccompProfile           *struct{} `json:"seccompProfile"`
	} `json:"securityContext"`
}

func read(d mesh.Dialect, data []byte) (s subject, err error) {
	s.mesh = d
	if s.pod, err = pod.ParseNew(data); err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s.raw); err != nil {
		return s, fmt.Errorf("decode Pod: %w", err)
	}
	return s, nil
}

// name is the pod's, or what its name will begin with.
func (s *subject) name(namespace string) string {
	return pod.ID{Namespace: namespace, Name: cmp.Or(s.pod.Name, s.raw.Metadata.GenerateName)}.String()
}

func (s *subject) injected() bool {
	return slices.ContainsFunc(s.pod.Containers, s.mesh.IsSidecar) || slices.ContainsFunc(s.pod.InitContainers, s.mesh.IsSidecar)
}

func (s *subject) removeInit() []Op {
	at := slices.IndexFunc(s.pod.InitContainers, s.mesh.IsInit)
	if at < 0 {
		return nil
	}
	s.pod.InitContainers = slices.Delete(s.pod.InitContainers, at, at+1)
	return []Op{{Op: "remove", Path: initContainer(at)}}
}

// native makes the sidecar the first init container, behind the mesh's validator. A pod whose only container is the sidecar is a
// gateway of the mesh: the proxy is its application.
func (s *subject) native() []Op {
	inits := s.pod.InitContainers
	to := 1 + slices.IndexFunc(inits, s.mesh.IsValidator)
	at := slices.IndexFunc(s.pod.Containers, s.mesh.IsSidecar)
	nativeAt := slices.IndexFunc(inits, func(c pod.Container) bool { return s.mesh.IsSidecar(c) && c.Restarts })
	switch {
	case at >= 0 && len(s.pod.Containers) > 1:
		return s.makeNative(at, to, nativeAt)
	case nativeAt > to:
		return []Op{{Op: "move", From: initContainer(nativeAt), Path: initContainer(to)}}
	}
	return nil
}

// makeNative moves a container to the init containers. If there is a native sidecar already, the injector was called again and has
// injected another: the new one takes its place.
func (s *subject) makeNative(at, to, nativeAt int) (ops []Op) {
	if s.raw.Spec.InitContainers == nil {
		ops = []Op{{Op: "add", Path: "/spec/initContainers", Value: []any{}}}
	}
	ops = append(ops,
		Op{Op: "move", From: container(at), Path: initContainer(to)},
		Op{Op: "add", Path: initContainer(to) + "/restartPolicy", Value: "Always"})
	if nativeAt >= to {
		nativeAt++
	}
	if nativeAt >= 0 {
		ops = append(ops, Op{Op: "remove", Path: initContainer(nativeAt)})
	}
	return ops
}

func (s *subject) selectReady() []Op {
	switch {
	case s.raw.Spec.NodeSelector == nil:
		return []Op{{Op: "add", Path: "/spec/nodeSelector", Value: map[string]string{pod.ReadyLabel: "true"}}}
	case s.raw.Spec.NodeSelector[pod.ReadyLabel] != "true":
		return []Op{{Op: "add", Path: "/spec/nodeSelector/detour.io~1ready", Value: "true"}}
	}
	return nil
}

// restrict gives a bare sidecar what the Pod Security Standard restricted requires. What the injector has set stays, except the right to
// gain privileges.
func (s *subject) restrict() []Op {
	if !s.mesh.BareSidecar {
		return nil
	}
	path, c, ok := s.sidecar()
	if !ok {
		return nil
	}
	path += "/securityContext"
	if c.SecurityContext == nil { // the user is the pod's
		return []Op{{Op: "add", Path: path, Value: map[string]any{
			"allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": dropAll, "seccompProfile": runtimeDefault,
		}}}
	}
	var ops []Op
	set := func(needed bool, field string, value any) {
		if needed {
			ops = append(ops, Op{Op: "add", Path: path + "/" + field, Value: value})
		}
	}
	context := c.SecurityContext
	set(context.AllowPrivilegeEscalation == nil || *context.AllowPrivilegeEscalation, "allowPrivilegeEscalation", false)
	set(context.RunAsNonRoot == nil, "runAsNonRoot", true)
	set(context.Capabilities == nil, "capabilities", dropAll)
	set(context.SeccompProfile == nil, "seccompProfile", runtimeDefault)
	return ops
}

var (
	dropAll        = map[string][]string{"drop": {"ALL"}}
	runtimeDefault = map[string]string{"type": "RuntimeDefault"}
)

// sidecar returns the sidecar and its path.
func (s *subject) sidecar() (path string, c rawContainer, ok bool) {
	if at := slices.IndexFunc(s.pod.Containers, s.mesh.IsSidecar); at >= 0 {
		return container(at), s.raw.Spec.Containers[at], true
	}
	if at := slices.IndexFunc(s.pod.InitContainers, s.mesh.IsSidecar); at >= 0 {
		return initContainer(at), s.raw.Spec.InitContainers[at], true
	}
	return "", c, false
}

func container(at int) string     { return fmt.Sprintf("/spec/containers/%d", at) }
func initContainer(at int) string { return fmt.Sprintf("/spec/initContainers/%d", at) }
