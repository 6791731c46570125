package mesh

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/redirect"
)

// parser reads one entry of a list. Its error says what an entry has to be; origin is the list's name.
type parser[T any] func(origin, entry string) (T, error)

// annotated reads a pod's comma-separated list; a pod without the annotation has an empty list. Like parseList, it keeps the
// first error.
func annotated[T comparable](failed *error, annotations map[string]string, name string, parse parser[T]) []T {
	value, ok := annotations[name]
	if !ok {
		return nil
	}
	return parseList(failed, name, strings.Split(value, ","), parse)
}

// parseList reads the entries of a list, each once. Blanks around an entry are trimmed; an empty entry does not parse. If an
// entry does not parse, parseList sets failed, unless an earlier list has: the error gives the list, the entry's place in it
// and its text.
func parseList[T comparable](failed *error, origin string, entries []string, parse parser[T]) []T {
	var out []T
	for i, e := range entries {
		v, err := parse(origin, strings.TrimSpace(e))
		if err != nil {
			*failed = cmp.Or(*failed, fmt.Errorf("%s: entry %d %s: %w", origin, i+1, quote(e), err))
			return nil
		}
		out = append(out, v)
	}
	return union(func(v T) T { return v }, out)
}

// quote quotes a text that somebody else wrote, for errors. Of a long text it gives the beginning and the length, so that no
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
		return redirect.Interface{}, errors.New("an interface's name is 1 to 15 of A-Z, a-z, 0-9, _, ., - and @, and does not begin with -")
	}
	return redirect.Interface{Name: entry, Origin: origin}, nil
}

// union joins lists. Of entries with the same key it keeps the first.
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

// decode reads a configuration object's JSON; an error names the field by its path.
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

// checkKind refuses an object that is not of the kind of the mesh's configuration.
func (d Dialect) checkKind(kind string) error {
	if kind != d.Config.Kind {
		return fmt.Errorf("kind: got %s, want %q", quote(kind), d.Config.Kind)
	}
	return nil
}
