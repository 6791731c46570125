package mesh

import (
	"encoding/json"
	"fmt"

	"github.com/detour-cni/detour/pkg/redirect"
)

// Config is what the OSM family's MeshConfig says of redirection; the zero Config stands for the mesh's defaults.
type Config struct {
	ExcludeRanges        []redirect.Range
	ExcludeOutboundPorts []redirect.Port
	ExcludeInboundPorts  []redirect.Port
	// Unsupported names the fields that are set but have no meaning in this mesh.
	Unsupported []string
}

// ParseConfig reads a MeshConfig of any version from its JSON. Errors name the field and the entry.
func (d Dialect) ParseConfig(data []byte) (Config, error) {
	var w struct {
		Kind string
		Spec struct {
			Traffic struct {
				OutboundIPRangeExclusionList  []string
				OutboundPortExclusionList     []json.Number
				InboundPortExclusionList      []json.Number
				OutboundIPRangeInclusionList  []string
				NetworkInterfaceExclusionList []string
			}
			Sidecar struct{ LocalProxyMode string }
		}
	}
	fail := func(err error) (Config, error) { return Config{}, fmt.Errorf("%s: %w", d.Config, err) }
	if err := json.Unmarshal(data, &w); err != nil {
		return fail(fmt.Errorf("decode: %w", err))
	}
	if w.Kind != d.Config.Kind {
		return fail(fmt.Errorf("decode: got kind %q, want %q", w.Kind, d.Config.Kind))
	}

	t := w.Spec.Traffic
	var c Config
	var err error
	if c.ExcludeRanges, err = parseList("spec.traffic.outboundIPRangeExclusionList", t.OutboundIPRangeExclusionList, parseRange); err != nil {
		return fail(err)
	}
	if c.ExcludeOutboundPorts, err = parseList("spec.traffic.outboundPortExclusionList", texts(t.OutboundPortExclusionList), parsePort); err != nil {
		return fail(err)
	}
	if c.ExcludeInboundPorts, err = parseList("spec.traffic.inboundPortExclusionList", texts(t.InboundPortExclusionList), parsePort); err != nil {
		return fail(err)
	}
	for _, f := range []struct {
		field string
		set   bool
	}{
		{"spec.traffic.outboundIPRangeInclusionList", len(t.OutboundIPRangeInclusionList) > 0},
		{"spec.traffic.networkInterfaceExclusionList", len(t.NetworkInterfaceExclusionList) > 0},
		{"spec.sidecar.localProxyMode", w.Spec.Sidecar.LocalProxyMode == "PodIP"},
	} {
		if f.set {
			c.Unsupported = append(c.Unsupported, f.field)
		}
	}
	return c, nil
}

func texts(numbers []json.Number) []string {
	var out []string
	for _, n := range numbers {
		out = append(out, n.String())
	}
	return out
}
