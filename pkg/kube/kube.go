// Package kube fetches a pod and its mesh's configuration from the node agent, the API server or YAML manifests. It decides nothing:
// it returns JSON as served.
package kube

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
)

// ErrNotFound is the error of a Lookup whose pod does not exist. The server must name the pod in its answer: a 404 from something
// other than an API server is not ErrNotFound.
var ErrNotFound = errors.New("no such pod")

// Source looks pods and their mesh's configuration up.
type Source interface {
	Lookup(context.Context, Request) (Objects, error)
	// Ready fails unless a Lookup could be answered now.
	Ready(context.Context, mesh.ConfigRef) error
}

// Open returns the source that a net conf's fields name: manifests if there are any, else the agent with the API server behind it, or
// the API server alone. It asks neither.
func Open(manifests, agentSocket, kubeconfig string) (Source, error) {
	switch {
	case manifests != "":
		return NewManifests(manifests)
	case agentSocket != "":
		return NewAgent(agentSocket, kubeconfig), nil
	}
	return NewAPI(kubeconfig)
}

// Request asks for one pod and the configuration of its mesh.
type Request struct {
	pod.ID
	Config mesh.ConfigRef // zero if the mesh has no configuration object
	// ConfigFor names the configuration for a pod with these annotations and labels. It is nil if Config is that of all pods.
	ConfigFor func(annotations, labels map[string]string) mesh.ConfigRef
	// Sidecar is a container of every meshed pod: a pod without it needs no configuration. If it is empty, all pods need theirs.
	Sidecar string
}

// NewRequest asks for all that the decision about a pod needs.
func NewRequest(d mesh.Dialect, id pod.ID) Request {
	r := Request{ID: id, Config: d.Config, Sidecar: d.Sidecar}
	if d.Revision != "" { // each revision has its own
		r.ConfigFor = d.ConfigFor
	}
	return r
}

// ConfigOf names the pod's configuration, which is zero if the pod needs none. It does not report a malformed pod.
func (r Request) ConfigOf(pod []byte) mesh.ConfigRef {
	type named struct{ Name string }
	var object struct {
		Metadata struct{ Annotations, Labels map[string]string }
		Spec     struct{ Containers, InitContainers []named }
	}
	switch err := json.Unmarshal(pod, &object); {
	case err != nil:
		return r.Config
	case r.Sidecar != "" && !slices.Contains(append(object.Spec.Containers, object.Spec.InitContainers...), named{r.Sidecar}):
		return mesh.ConfigRef{}
	case r.ConfigFor != nil:
		return r.ConfigFor(object.Metadata.Annotations, object.Metadata.Labels)
	}
	return r.Config
}

// Objects is the answer to a Request, as JSON from the server or the manifest.
type Objects struct {
	Pod    []byte
	Config []byte // nil if absent
	// ConfigAbsent says why Config is nil although the mesh has a configuration object, as half a sentence for a warning.
	ConfigAbsent string
	// Fallback says why the agent had no answer, if the API server was asked instead.
	Fallback string
	// Old says for how long the API server has not answered, if the objects are from before that, as a sentence for a warning.
	Old string
}

// resource returns the resource as RBAC and kubectl name it: "meshconfigs.config.openservicemesh.io".
func resource(group, plural string) string {
	if group == "" {
		return plural
	}
	return plural + "." + group
}
