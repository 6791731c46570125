package mesh

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Override replaces parts of a dialect, for a proxy that no row fits. An empty field leaves its part as it is.
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

// With returns the dialect with the override. The error names every field that has a value which can't be, or that the mesh
// has no use for.
func (d Dialect) With(o Override) (Dialect, error) {
	if d.family == nil {
		return d, errors.New("proxy: there is no mesh to override")
	}
	var wrong mistakes
	if d.Config.IsZero() && !reflect.ValueOf(o.MeshConfig).IsZero() {
		wrong.add("proxy.meshConfig: mesh %s has no configuration object", d.Name)
	}
	d.overrideNames(o, &wrong)
	d.overrideProxy(o, &wrong)
	if err := d.Broadest().Validate(); err != nil && wrong == nil {
		wrong.add("proxy: %v", err)
	}
	if wrong != nil {
		return d, errors.New(strings.Join(wrong, "; "))
	}
	return d, nil
}

type mistakes []string

func (m *mistakes) add(format string, args ...any) { *m = append(*m, fmt.Sprintf(format, args...)) }

func (d *Dialect) overrideNames(o Override, wrong *mistakes) {
	set := func(field, value string, target *string, valid bool) {
		if value == "" {
			return
		}
		if !valid {
			wrong.add("proxy.%s: %q can't be one for mesh %s", field, value, d.Name)
		}
		*target = value
	}
	set("container", o.Container, &d.Sidecar, IsName(o.Container))
	set("initContainer", o.InitContainer, &d.InitContainer, IsName(o.InitContainer))
	var prefix string
	domain, slash := strings.CutSuffix(o.AnnotationPrefix, "/")
	set("annotationPrefix", o.AnnotationPrefix, &prefix, slash && IsName(domain) && len(d.Prefixes) == 1)
	if prefix != "" {
		d.Prefixes, d.Injection = []string{prefix}, prefix+sidecarInjection
	}

	c := o.MeshConfig
	set("meshConfig.group", c.Group, &d.Config.Group, IsName(c.Group))
	set("meshConfig.resource", c.Resource, &d.Config.Resource, IsName(c.Resource))
	set("meshConfig.kind", c.Kind, &d.Config.Kind, IsName(strings.ToLower(c.Kind)))
	set("meshConfig.namespace", c.Namespace, &d.Config.Namespace, IsName(c.Namespace))
	set("meshConfig.name", c.Name, &d.Config.Name, IsName(c.Name))
	for _, v := range c.Versions {
		if !IsName(v) {
			wrong.add("proxy.meshConfig.versions: %q is not an API version", v)
		}
	}
	if c.Versions != nil {
		d.Config.Versions = c.Versions
	}
}

func (d *Dialect) overrideProxy(o Override, wrong *mistakes) {
	id := func(field string, value *uint32, target *uint32) {
		switch {
		case value == nil:
		case *target == 0:
			wrong.add("proxy.%s: mesh %s does not know its proxy by that", field, d.Name)
		case *value == 0 || *value > maxID:
			wrong.add("proxy.%s: %d can't be the proxy's", field, *value)
		default:
			*target = *value
		}
	}
	id("uid", o.UID, &d.Proxy.UID)
	id("gid", o.GID, &d.Proxy.GID)
	port := func(field string, value uint16, target *uint16) {
		switch {
		case value == 0:
		case *target == 0:
			wrong.add("proxy.ports.%s: mesh %s has no such listener", field, d.Name)
		default:
			*target = value
		}
	}
	port("inbound", o.Ports.Inbound, &d.Proxy.Inbound)
	port("outbound", o.Ports.Outbound, &d.Proxy.Outbound)
	port("admin", o.Ports.Admin, &d.Proxy.Admin)
	port("tunnel", o.Ports.Tunnel, &d.Proxy.Tunnel)
	port("dns", o.Ports.DNS, &d.Proxy.DNS)
}
