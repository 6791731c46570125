// Package decision says what is to be programmed for a pod: net conf, pod, mesh configuration and addresses go in, rules or
// the reason why there are none come out. It is pure, and the only place that decides: plugin, agent, command line and tests
// all ask it.
package decision

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// Options are what a net conf says about all pods of its network.
type Options struct {
	Dialect mesh.Dialect
	// ExcludeNamespaces are left alone.
	ExcludeNamespaces []string
	// DirectInit are the namespaces whose pods' init containers bypass the proxy.
	DirectInit []string
	// Gated delays outbound redirection until the proxy sends its first packet.
	Gated bool
}

// DefaultExclusions are the ExcludeNamespaces of a net conf that has none.
func DefaultExclusions(d mesh.Dialect) []string {
	if d.Config.Namespace == "" {
		return []string{"kube-system"}
	}
	return []string{"kube-system", d.Config.Namespace}
}

// Input is what is known of one pod.
type Input struct {
	// ID names the pod as the runtime does.
	ID pod.ID
	// Pod is the API server's JSON of it, Config that of its mesh's configuration. Without Config the mesh's defaults hold, and
	// ConfigAbsent says why, as half a sentence.
	Pod, Config  []byte
	ConfigAbsent string
	// Addresses are the pod's own, of all its interfaces.
	Addresses []netip.Addr
}

// Decision is what the mesh wants of the pod, and the rules that do it.
type Decision struct {
	mesh.Decision
	Rules rules.Ruleset
}

// Excluded returns why the pods of a namespace are left alone whatever they are, "" if they are not.
func (o Options) Excluded(namespace string) string {
	if slices.Contains(o.ExcludeNamespaces, namespace) {
		return fmt.Sprintf("namespace %s is excluded", namespace)
	}
	return ""
}

// Decide returns what is to be programmed for the pod. Every error is a refusal: only a change of the pod or of the mesh's
// configuration mends it.
func (o Options) Decide(in Input) (Decision, error) {
	if skip := o.Excluded(in.ID.Namespace); skip != "" {
		return Decision{Decision: mesh.Decision{Skip: skip}}, nil
	}
	facts, err := pod.Parse(in.Pod)
	if err != nil {
		return Decision{}, fmt.Errorf("pod %s: %w", in.ID, err)
	}
	if uid := in.ID.UID; uid != "" && !facts.HasUID(uid) {
		return Decision{}, fmt.Errorf("pod %s: the runtime starts UID %s, but the API server has UID %s: the pod was replaced meanwhile", in.ID, uid, facts.UID)
	}
	wants, err := o.Dialect.Decide(mesh.Input{
		Pod:             facts,
		Config:          in.Config,
		Addresses:       in.Addresses,
		DirectInit:      slices.Contains(o.DirectInit, in.ID.Namespace),
		AfterProxyStart: o.Gated,
	})
	if err != nil || wants.Skip != "" {
		return Decision{Decision: wants}, err
	}
	if in.Config == nil && in.ConfigAbsent != "" {
		wants.Warnings = append(wants.Warnings, in.ConfigAbsent+": the mesh's defaults hold")
	}
	return Decision{wants, wants.Policy.Ruleset()}, nil
}
