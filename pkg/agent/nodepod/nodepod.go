// Package nodepod is what the agent keeps of one of its node's pods.
package nodepod

import (
	"net/netip"
	"time"

	"github.com/detour-cni/detour/pkg/pod"
)

// Pod is a pod of this node.
type Pod struct {
	pod.ID          // as the API server knows it
	MirrorOf string // the UID of a static pod's manifest
	Config   string // the name of the object with its mesh's configuration
	JSON     []byte // trimmed; nil if it is too long to keep

	HostNetwork bool
	Deleting    bool
	Controlled  bool // a controller replaces it
	Phase       string
	Since       time.Time // when the last of its running containers started; zero if none runs
	Addresses   []netip.Addr
}

// HasUID reports whether the API server or the kubelet knows the pod by this UID.
func (p Pod) HasUID(uid string) bool { return uid != "" && (uid == p.UID || uid == p.MirrorOf) }

// AtRuntime is the pod's ID as the kubelet and the runtime know it.
func (p Pod) AtRuntime() pod.ID {
	id := p.ID
	if p.MirrorOf != "" {
		id.UID = p.MirrorOf
	}
	return id
}
