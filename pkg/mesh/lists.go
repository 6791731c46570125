package mesh

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

// parseList reads every entry of a list. Blanks around an entry are trimmed; an entry that does not parse, an empty one
// included, is an error that gives the list, its place and its text.
func parseList[T any](origin string, entries []string, parse func(origin, entry string) (T, error)) ([]T, error) {
	var out []T
	for i, e := range entries {
		v, err := parse(origin, strings.TrimSpace(e))
		if err != nil {
			return nil, fmt.Errorf("%s: entry %d %q: %w", origin, i+1, e, err)
		}
		out = append(out, v)
	}
	return out, nil
}

func parsePort(origin, entry string) (redirect.Port, error) {
	n, err := strconv.ParseUint(entry, 10, 16)
	if err != nil || n == 0 {
		return redirect.Port{}, fmt.Errorf("a port is 1 to 65535")
	}
	return redirect.Port{Number: uint16(n), Origin: origin}, nil
}

func parseRange(origin, entry string) (redirect.Range, error) {
	prefix, err := netip.ParsePrefix(entry)
	if err != nil {
		return redirect.Range{}, fmt.Errorf("a range is an address and a prefix length, such as 10.0.0.0/8 or fd00::/8")
	}
	if prefix.Addr().Is4In6() {
		return redirect.Range{}, fmt.Errorf("an IPv4-mapped range never matches a packet, write it as IPv4")
	}
	return redirect.Range{Prefix: prefix.Masked(), Origin: origin}, nil
}

// union joins lists and keeps the first of those entries that mean the same.
func union[T any, K comparable](key func(T) K, lists ...[]T) []T {
	seen := map[K]bool{}
	return slices.DeleteFunc(slices.Concat(lists...), func(v T) bool {
		k := key(v)
		dup := seen[k]
		seen[k] = true
		return dup
	})
}

func portNumber(p redirect.Port) uint16         { return p.Number }
func rangePrefix(r redirect.Range) netip.Prefix { return r.Prefix }
