package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

// annotations are a pod's, of which only those with a prefix are the mesh's.
type annotations struct {
	prefix string
	values map[string]string
}

// list reads a comma-separated list; no annotation is an empty list.
func list[T any](a annotations, name string, parse func(origin, entry string) (T, error)) ([]T, error) {
	value, ok := a.values[a.prefix+name]
	if !ok {
		return nil, nil
	}
	return parseList(a.prefix+name, strings.Split(value, ","), parse)
}

// parseList reads every entry of a list. Blanks around an entry are trimmed; an entry that does not parse, an empty one
// included, is an error that gives the list, its place and its text.
func parseList[T any](origin string, entries []string, parse func(origin, entry string) (T, error)) ([]T, error) {
	var out []T
	for i, e := range entries {
		v, err := parse(origin, strings.TrimSpace(e))
		if err != nil {
			return nil, fmt.Errorf("%s: entry %d %s: %w", origin, i+1, quote(e), err)
		}
		out = append(out, v)
	}
	return out, nil
}

// quote gives a text that somebody else wrote as errors show it: the beginning of a long one and its length, so that no
// pod can flood a log.
func quote(text string) string {
	const most = 64
	if len(text) <= most {
		return strconv.Quote(text)
	}
	return fmt.Sprintf("%q... (%d bytes)", text[:most], len(text))
}

func parsePort(origin, entry string) (redirect.Port, error) {
	n, err := strconv.ParseUint(entry, 10, 16)
	if err != nil || n == 0 {
		return redirect.Port{}, errors.New("a port is 1 to 65535")
	}
	return redirect.Port{Number: uint16(n), Origin: origin}, nil
}

func parseRange(origin, entry string) (redirect.Range, error) {
	prefix, err := netip.ParsePrefix(entry)
	if err != nil {
		return redirect.Range{}, errors.New("a range is an address and a prefix length, such as 10.0.0.0/8 or fd00::/8")
	}
	if prefix.Addr().Is4In6() {
		return redirect.Range{}, errors.New("an IPv4-mapped range never matches a packet, write it as IPv4")
	}
	return redirect.Range{Prefix: prefix.Masked(), Origin: origin}, nil
}

func parseInterface(origin, entry string) (redirect.Interface, error) {
	if !redirect.IsInterface(entry) {
		return redirect.Interface{}, errors.New("an interface's name is 1 to 15 of A-Z, a-z, 0-9, _, ., - and @")
	}
	return redirect.Interface{Name: entry, Origin: origin}, nil
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
func interfaceName(i redirect.Interface) string { return i.Name }

// decode reads JSON; an error names the field by its path.
func decode(data []byte, into any) error {
	err := json.Unmarshal(data, into)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s: a JSON %s does not belong there", wrong.Field, wrong.Value)
	}
	if err != nil {
		return fmt.Errorf("it is no JSON object: %w", err)
	}
	return nil
}
