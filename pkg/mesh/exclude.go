package mesh

import (
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Setting names what a mesh's users set: an annotation of the pod, and a field of the mesh's configuration. The mesh may have one only.
type Setting struct{ Annotation, Field string }

// Exclusions are the settings that keep traffic away from the proxy.
type Exclusions struct{ OutboundPorts, InboundPorts, OutboundRanges Setting }

// osmExclusions are those of Open Service Mesh and its successors, whose annotations begin with prefix.
func osmExclusions(prefix string) Exclusions {
	return Exclusions{
		OutboundPorts:  Setting{prefix + outboundPorts, "spec.traffic.outboundPortExclusionList"},
		InboundPorts:   Setting{prefix + inboundPorts, "spec.traffic.inboundPortExclusionList"},
		OutboundRanges: Setting{prefix + outboundRanges, "spec.traffic.outboundIPRangeExclusionList"},
	}
}

// WithChain returns the first dialect whose rules have this chain. Meshes of one family may share the names of their chains, and then
// share their Exclusions, too.
func WithChain(c rules.Chain) (Dialect, bool) {
	i := slices.IndexFunc(dialects, func(d Dialect) bool { return slices.Contains(d.Broadest().Ruleset().Chains, c) })
	if i < 0 {
		return Dialect{}, false
	}
	return dialects[i], true
}
