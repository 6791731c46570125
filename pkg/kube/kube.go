// Package kube fetches a pod and its mesh's configuration, from the API server or from YAML manifests. It decides nothing:
// it returns JSON as served.
package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/detour-cni/detour/pkg/mesh"
)

// ErrNotFound is found by errors.Is in the error of a Lookup whose pod does not exist. Only a server that names the pod in
// its answer counts: a 404 from something that is no API server is not ErrNotFound.
var ErrNotFound = errors.New("no such pod")

// ConfigRef names the mesh's configuration object.
type ConfigRef struct {
	Group     string   // API group; empty for core
	Versions  []string // newest first
	Resource  string   // plural, as in the URL: "meshconfigs"
	Kind      string   // as in a manifest: "MeshConfig"
	Namespace string
	Name      string
}

// Request asks for one pod and the configuration of its mesh.
type Request struct {
	Namespace, Name string // of the pod
	UID             string // of the pod, if known: so that a cache does not answer with another of the same name
	Config          ConfigRef
	// ConfigFor names the configuration of a pod with these annotations and labels where Config is not that of all pods.
	ConfigFor func(annotations, labels map[string]string) mesh.ConfigRef
}

// NewRequest asks for what the mesh wants to know of a pod.
func NewRequest(d mesh.Dialect, namespace, name, uid string) Request {
	r := Request{Namespace: namespace, Name: name, UID: uid, Config: ConfigRef(d.Config)}
	if d.Revision != "" { // each revision has its own
		r.ConfigFor = d.ConfigFor
	}
	return r
}

// configOf names the configuration of the pod. What is no pod is the caller's to find out.
func (r Request) configOf(pod []byte) ConfigRef {
	var object struct {
		Metadata struct{ Annotations, Labels map[string]string }
	}
	if r.ConfigFor == nil || json.Unmarshal(pod, &object) != nil {
		return r.Config
	}
	return ConfigRef(r.ConfigFor(object.Metadata.Annotations, object.Metadata.Labels))
}

// Objects is the answer, JSON as the server or the manifest has it.
type Objects struct {
	Pod    []byte
	Config []byte // nil if absent
	// ConfigAbsent says why Config is nil, as half a sentence for a warning.
	ConfigAbsent string
	// Fallback says why the agent had no answer, if the API server was asked instead.
	Fallback string
}

// object returns the configuration object as a sentence names it: "MeshConfig osm-system/osm-mesh-config".
func (c ConfigRef) object() string { return fmt.Sprintf("%s %s/%s", c.Kind, c.Namespace, c.Name) }

// resource returns the resource as RBAC and kubectl name it: "meshconfigs.config.openservicemesh.io".
func (c ConfigRef) resource() string {
	if c.Group == "" {
		return c.Resource
	}
	return c.Resource + "." + c.Group
}

func (c ConfigRef) versions() string { return strings.Join(c.Versions, " or ") }
