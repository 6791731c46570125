package iptables

import "github.com/detour-cni/detour/pkg/rules"

// LegacyFresh reports whether the namespace has no legacy table.
func LegacyFresh() bool {
	for _, f := range rules.Families {
		if names, _ := legacyTables(f); len(names) > 0 {
			return false
		}
	}
	return true
}
