package rules

import (
	"net/netip"
	"slices"
)

// Setup holds the addresses and routes that a ruleset relies on.
type Setup struct {
	// Loopback are addresses that lo must have.
	Loopback []netip.Prefix `json:"loopback,omitempty"`
	// Routes deliver marked packets locally, whatever their destination.
	Routes []LocalRoute `json:"routes,omitempty"`
}

// LocalRoute is an ip rule that routes packets with Mark by Table, and Table's one route, which makes every address local on
// lo.
type LocalRoute struct {
	Mark  uint32 `json:"mark"`
	Table int    `json:"table"`
}

// Join returns what s or other needs, each thing once.
func (s Setup) Join(other Setup) Setup {
	return Setup{once(s.Loopback, other.Loopback), once(s.Routes, other.Routes)}
}

// Without returns what s needs and other does not.
func (s Setup) Without(other Setup) Setup {
	return Setup{
		slices.DeleteFunc(slices.Clone(s.Loopback), func(p netip.Prefix) bool { return slices.Contains(other.Loopback, p) }),
		slices.DeleteFunc(slices.Clone(s.Routes), func(r LocalRoute) bool { return slices.Contains(other.Routes, r) }),
	}
}

func once[T comparable](lists ...[]T) []T {
	var out []T
	for _, v := range slices.Concat(lists...) {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}
