package mesh

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

// Override replaces parts of a dialect for a proxy that none of the rows fits. What is empty stays as it is.
type Override struct {
	Container        string        `json:"container"`
	InitContainer    string        `json:"initContainer"`
	AnnotationPrefix string        `json:"annotationPrefix"`
	UID              *uint32       `json:"uid"`
	GID              *uint32       `json:"gid"`
	Ports            PortsOverride `json:"ports"`
	MeshConfig       ConfigRef     `json:"meshConfig"`
}

// PortsOverride replaces the proxy's listeners; 0 leaves one as it is.
type PortsOverride struct {
	Inbound  uint16 `json:"inbound"`
	Outbound uint16 `json:"outbound"`
	Admin    uint16 `json:"admin"`
	Tunnel   uint16 `json:"tunnel"`
	DNS      uint16 `json:"dns"`
}

// With returns the dialect with the override. Errors name every field that the mesh has no use for or that can't be.
func (d Dialect) With(o Override) (Dialect, error) {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	for _, s := range []struct {
		field, value string
		target       *string
		valid        func(string) bool
	}{
		{"container", o.Container, &d.Sidecar, IsName},
		{"initContainer", o.InitContainer, &d.InitContainer, IsName},
		{"meshConfig.group", o.MeshConfig.Group, &d.Config.Group, IsName},
		{"meshConfig.resource", o.MeshConfig.Resource, &d.Config.Resource, IsName},
		{"meshConfig.kind", o.MeshConfig.Kind, &d.Config.Kind, func(s string) bool { return IsName(strings.ToLower(s)) }},
		{"meshConfig.namespace", o.MeshConfig.Namespace, &d.Config.Namespace, IsName},
		{"meshConfig.name", o.MeshConfig.Name, &d.Config.Name, IsName},
		{"annotationPrefix", o.AnnotationPrefix, &d.Prefix, func(s string) bool {
			host, slash := strings.CutSuffix(s, "/")
			return slash && IsName(host) && !d.Istio
		}},
	} {
		if s.value == "" {
			continue
		}
		if !s.valid(s.value) {
			bad("proxy.%s: %q can't be one for mesh %s", s.field, s.value, d.Name)
		}
		*s.target = s.value
	}
	for _, v := range o.MeshConfig.Versions {
		if !IsName(v) {
			bad("proxy.meshConfig.versions: %q is not an API version", v)
		}
	}
	if o.MeshConfig.Versions != nil {
		d.Config.Versions = o.MeshConfig.Versions
	}
	d.override("uid", o.UID, &d.UID, true, bad)
	d.override("gid", o.GID, &d.GID, d.Istio, bad)
	for _, p := range []struct {
		field  string
		value  uint16
		target *uint16
	}{
		{"inbound", o.Ports.Inbound, &d.Ports.Inbound},
		{"outbound", o.Ports.Outbound, &d.Ports.Outbound},
		{"admin", o.Ports.Admin, &d.Ports.Admin},
		{"tunnel", o.Ports.Tunnel, &d.Ports.Tunnel},
		{"dns", o.Ports.DNS, &d.Ports.DNS},
	} {
		if p.value != 0 && *p.target == 0 {
			bad("proxy.ports.%s: mesh %s has no such listener", p.field, d.Name)
		}
		if p.value != 0 {
			*p.target = p.value
		}
	}
	if err := d.Broadest().Validate(); err != nil && wrong == nil {
		bad("proxy: %v", err)
	}
	if wrong != nil {
		return d, errors.New(strings.Join(wrong, "; "))
	}
	return d, nil
}

func (d Dialect) override(field string, value *uint32, target *uint32, known bool, bad func(string, ...any)) {
	switch {
	case value == nil:
	case !known:
		bad("proxy.%s: mesh %s does not know its proxy by that", field, d.Name)
	case *value == 0 || *value > maxUID:
		bad("proxy.%s: %d can't be the proxy's", field, *value)
	default:
		*target = *value
	}
}

// Broadest returns a policy with everything in it that the mesh may program without a pod asking for it by name: what
// there is to look for in a namespace of which nothing is known.
func (d Dialect) Broadest() redirect.Policy {
	if !d.Istio {
		return redirect.OSM{
			Chains:    d.Chains,
			Proxy:     redirect.Proxy{UID: d.UID, Inbound: d.Ports.Inbound, Outbound: d.Ports.Outbound, Admin: d.Ports.Admin},
			SelfCalls: d.Features.SelfCalls,
			LocalDNS:  d.Features.LocalDNS,
		}
	}
	return redirect.Istio{
		Proxy: redirect.IstioProxy{
			UIDs: []uint32{d.UID}, GIDs: []uint32{d.GID},
			Inbound: d.Ports.Inbound, Outbound: d.Ports.Outbound, Tunnel: d.Ports.Tunnel, DNS: d.Ports.DNS,
		},
		TProxy: true, DropInvalid: true, DNSCapture: true,
		Inbound: redirect.IstioInbound{All: true}, Outbound: redirect.IstioOutbound{All: true},
	}
}

// IsName reports whether s can be a Kubernetes object's name (RFC 1123 subdomain), and so be part of a URL's path.
func IsName(s string) bool {
	const inner = "abcdefghijklmnopqrstuvwxyz0123456789-."
	return s != "" && len(s) <= 253 && strings.Trim(s, inner) == "" && !slices.ContainsFunc([]string{"-", "."}, func(c string) bool {
		return strings.HasPrefix(s, c) || strings.HasSuffix(s, c)
	})
}
