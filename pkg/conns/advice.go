package conns

import (
	"fmt"
	"slices"
	"strings"
)

// advice says what would get connections to d past a proxy that swallows them.
func advice(p Proxy, d *Destination) string {
	switch {
	case d.listener != 0 && !slices.Contains(p.Listening, d.listener):
		return fmt.Sprintf("see why the sidecar does not listen at port %d: its container's state and log", d.listener)
	case d.Protocol != "tcp":
		return ""
	}
	way := map[Direction]string{Out: "outbound", In: "inbound"}[d.Direction]
	port := d.To.Port()
	osm := fmt.Sprintf("add %d to %sPortExclusionList of the MeshConfig", port, way)
	byAnnotation := func(prefix string) string {
		return fmt.Sprintf("%s, or to the pod's annotation %s%s-port-exclusion-list; restart the pod", osm, prefix, way)
	}
	switch {
	case p.Mesh == "istio":
		title := strings.ToUpper(way[:1]) + way[1:]
		text := fmt.Sprintf("add %d to the pod's annotation traffic.sidecar.istio.io/exclude%sPorts and restart the pod", port, title)
		if d.Direction == Out {
			text += fmt.Sprintf(", or make a ServiceEntry for %s with protocol TCP", d.To)
		}
		return text
	case p.Mesh == "fsm":
		return byAnnotation("flomesh.io/")
	case p.Mesh != "":
		return byAnnotation("openservicemesh.io/")
	case p.osmOnly:
		return osm + "; restart the pod"
	}
	return fmt.Sprintf("exclude port %d from %s redirection and restart the pod", port, way)
}
