package mesh

import "strings"

// Reads reports whether Decide may look at an annotation or a label of this name: it looks at none outside the mesh's
// domain and detour's own.
func (d Dialect) Reads(name string) bool {
	domain, _, _ := strings.Cut(name, "/")
	switch {
	case domain == "detour.io":
		return true
	case d.Istio:
		return domain == "istio.io" || strings.HasSuffix(domain, ".istio.io")
	}
	return strings.HasPrefix(name, d.Prefix)
}
