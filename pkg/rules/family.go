package rules

import (
	"fmt"
	"net/netip"
	"slices"
)

// Family is an IP address family.
type Family uint8

// The families, by their version numbers.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both families, in the order in which they are programmed.
var Families = []Family{IPv4, IPv6}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// MarshalText makes a Family readable in JSON.
func (f Family) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (f *Family) UnmarshalText(text []byte) error {
	for _, known := range Families {
		if string(text) == known.String() {
			*f = known
			return nil
		}
	}
	return fmt.Errorf("%q is neither IPv4 nor IPv6", text)
}

// Of returns the family of an address; an IPv4-mapped IPv6 address counts as IPv4.
func Of(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// OfFamily returns the ranges of one family.
func OfFamily(prefixes []netip.Prefix, f Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return Of(p.Addr()) != f })
}

// FamiliesOf returns the families of the addresses.
func FamiliesOf(addresses []netip.Addr) []Family {
	var out []Family
	for _, f := range Families {
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return Of(a) == f }) {
			out = append(out, f)
		}
	}
	return out
}
