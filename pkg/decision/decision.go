// Package decision decides what to program for a pod: net conf, pod, mesh configuration and addresses go in; rules, or the reason
// for leaving the pod alone, come out. It is pure. Plugin, agent, command line and tests all use it.
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
	if d.Config.IsZero() {
		return []string{"kube-system"}
	}
	return []string{"kube-system", d.Config.Namespace}
}

// Input is what is known of one pod.
type Input struct {
	// ID names the pod as the runtime does.
	ID pod.ID
	// Pod is the pod as the API server's JSON, Config its mesh's configuration. Without Config the mesh's defaults apply;
	// ConfigAbsent says why it is missing, as half a sentence, and is empty if the mesh has no such object.
	Pod, Config  []byte
	ConfigAbsent string
	// Addresses are the pod's own, of all its interfaces.
	Addresses []netip.Addr
}

// Decision is what the mesh wants of the pod, and the rules for it.
type Decision struct {
	mesh.Decision
	Rules rules.Ruleset
}

// Excluded returns why all pods of the namespace are left alone, or "".
func (o Options) Excluded(namespace string) string {
	if slices.Contains(o.ExcludeNamespaces, namespace) {
		return fmt.Sprintf("namespace %s is excluded", namespace)
	}
	return ""
}

// Decide returns what to program for the pod. Every error is a refusal: it goes away only if somebody changes the pod or the mesh's
// configuration.
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
	return o.DecidePod(facts, in)
}

// DecidePod is Decide for a pod that was read already. Of in, only configuration and addresses count.
func (o Options) DecidePod(p pod.Pod, in Input) (Decision, error) {
	wants, err := o.Dialect.Decide(mesh.Input{
		Pod:        p,
		Config:     in.Config,
		Addresses:  in.Addresses,
		DirectInit: slices.Contains(o.DirectInit, p.Namespace),
		Gated:      o.Gated,
	})
	if err == nil && wants.Skip != "" && p.SelectsReady && !slices.ContainsFunc(p.InitContainers, o.Dialect.IsInit) {
		return Decision{}, fmt.Errorf("pod %s: its node selector says %s=true, as that of a pod that lost its mesh's init container at admission, "+
			"and detour would leave it alone, because %s: it would run unmeshed; create it anew, or leave the label out of its node selector",
			p, pod.ReadyLabel, wants.Skip)
	}
	if err != nil || wants.Skip != "" {
		return Decision{Decision: wants}, err
	}
	if in.Config == nil && in.ConfigAbsent != "" {
		wants.Warnings = append(wants.Warnings, in.ConfigAbsent+": the mesh's defaults hold")
	}
	return Decision{wants, wants.Policy.Ruleset()}, nil
}
