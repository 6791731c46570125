package doctor

import (
	"slices"

	"github.com/detour-cni/detour/pkg/rules"
)

// Missing are the features that a ruleset needs and the variant of a backend lacks in one of the families.
func (r Report) Missing(variant string, rs rules.Ruleset, families []rules.Family) []Feature {
	kinds := append(kindsOf(rs), Redirected)
	return slices.DeleteFunc(slices.Clone(r.Features), func(f Feature) bool {
		return f.Present || f.Backend != variant || !slices.Contains(families, f.Family) || !slices.Contains(kinds, f.Name)
	})
}
