package conns

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/mesh"
)

// advice says what would get connections to d past a proxy that swallows them.
func advice(p Proxy, d *Destination) string {
	switch {
	case !slices.Contains(p.Listening, d.listener):
		return fmt.Sprintf("see the sidecar's state and log: it does not listen at port %d", d.listener)
	case d.Protocol != "tcp" || len(p.rows) == 0:
		return ""
	}
	setting := func(row mesh.Dialect) mesh.Setting {
		if d.Direction == In {
			return row.Exclusions.InboundPorts
		}
		return row.Exclusions.OutboundPorts
	}
	where := setting(p.rows[0])
	for _, row := range p.rows[1:] { // the ports do not tell which of them it is
		other := setting(row)
		if other.Field != where.Field {
			where.Field = ""
		}
		if other.Annotation != where.Annotation {
			where.Annotation = ""
		}
	}
	text := fmt.Sprintf("add %d to ", d.To.Port())
	switch {
	case where.Annotation == "" && where.Field == "":
		return fmt.Sprintf("exclude port %d from redirection and restart the pod", d.To.Port())
	case where.Field == "":
		text += "the pod's annotation " + where.Annotation
	case where.Annotation == "":
		text += fmt.Sprintf("%s of the %s", where.Field, p.rows[0].Config.Kind)
	default:
		text += fmt.Sprintf("%s of the %s, or to the pod's annotation %s", where.Field, p.rows[0].Config.Kind, where.Annotation)
	}
	text += ", and restart the pod"
	if p.Mesh == "istio" && d.Direction == Out {
		text += fmt.Sprintf("; or make a ServiceEntry with address %s and port %d of protocol TCP", d.To.Addr(), d.To.Port())
	}
	return text
}
