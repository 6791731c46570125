package iptsave

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/detour-cni/detour/pkg/trace"
)

// IPSet is an ipset: its elements, and of what each consists, such as "ip", "port" and "net".
type IPSet struct {
	trace.Set
	Parts []string
}

func matchSet(p *parser, args []string, text string) error {
	set, key, err := p.file.set(args[0], args[1])
	if err == nil {
		p.match(key, set, text)
	}
	return err
}

func changeSet(add bool) func(*parser, []string, string) error {
	return func(p *parser, args []string, _ string) error {
		set, key, err := p.file.set(args[0], args[1])
		if err != nil {
			return err
		}
		var s trace.Statement = trace.Delete{Key: key, Set: set}
		if add {
			s = trace.Add{Key: key, Set: set}
		}
		p.target.effects = append(p.target.effects, s)
		return nil
	}
}

// sides are the fields of an ipset's part for "src" and "dst".
var sides = map[string]map[string]trace.Concat{
	"ip":    {"src": {trace.Saddr}, "dst": {trace.Daddr}},
	"net":   {"src": {trace.Saddr}, "dst": {trace.Daddr}},
	"port":  {"src": {trace.L4Proto, trace.Sport}, "dst": {trace.L4Proto, trace.Dport}},
	"iface": {"src": {trace.IIFName}, "dst": {trace.OIFName}},
	// A bitmap of ports has them for every protocol.
	barePort: {"src": {trace.Sport}, "dst": {trace.Dport}},
}

const barePort = "port of any protocol"

// ReadSets reads what `ipset save` prints. A set with parts or elements that a walk doesn't know is one whose elements are not known.
func ReadSets(data []byte) (map[string]*IPSet, error) {
	sets := map[string]*IPSet{}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case len(words) >= 3 && words[0] == "create":
			sets[words[1]] = newSet(words[1], words[2])
		case len(words) >= 3 && words[0] == "add" && sets[words[1]] != nil:
			sets[words[1]].add(words[2:])
		default:
			return nil, fmt.Errorf("line %d: %q is no line of `ipset save`", number, shorten(strings.TrimSpace(line)))
		}
	}
	return sets, nil
}

// newSet makes a set of a type such as "hash:ip,port".
func newSet(name, kind string) *IPSet {
	s := &IPSet{Set: trace.Set{Name: name}}
	method, parts, _ := strings.Cut(kind, ":")
	s.Parts = strings.Split(parts, ",")
	if kind == "bitmap:port" {
		s.Parts = []string{barePort}
	}
	for _, part := range s.Parts {
		if sides[part] == nil || method == "list" {
			s.Unknown = fmt.Sprintf("the walk does not know ipset %s, which is of type %s", name, kind)
		}
	}
	return s
}

// add adds an element such as "10.0.0.0/24,tcp:80"; options may follow it.
func (s *IPSet) add(words []string) {
	key, err := s.key(words[0])
	for _, option := range words[1:] {
		if option == "nomatch" {
			err = errors.New("it has an exception")
		}
	}
	if err != nil {
		s.Unknown = fmt.Sprintf("the walk does not know element %s of ipset %s: %v", words[0], s.Name, err)
		return
	}
	s.Elements = append(s.Elements, trace.Element{Key: key})
}

func (s *IPSet) key(element string) (key []trace.Range, err error) {
	words := strings.Split(element, ",")
	if len(words) != len(s.Parts) {
		return nil, errors.New("it has another number of parts than the set")
	}
	for i, word := range words {
		ranges, err := partOf(s.Parts[i], word)
		if err != nil {
			return nil, err
		}
		key = append(key, ranges...)
	}
	return key, nil
}

// partOf reads one part of an element; a port has a protocol ahead of it.
func partOf(part, word string) ([]trace.Range, error) {
	switch part {
	case "ip", "net":
		if a, err := netip.ParseAddr(word); err == nil {
			return []trace.Range{trace.Just(trace.Addr(a))}, nil
		}
		p, err := netip.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("%q is no address", word)
		}
		return []trace.Range{trace.Prefix(p)}, nil
	case "port":
		name, port, _ := strings.Cut(word, ":")
		protocol, ok := protocols[name]
		if !ok {
			return nil, fmt.Errorf("%q has no protocol with ports", word)
		}
		r, err := numbers(port, port, 16)
		return []trace.Range{trace.Just(trace.Number(protocol)), r}, err
	case barePort:
		lo, hi, isRange := strings.Cut(word, "-")
		if !isRange {
			hi = lo
		}
		r, err := numbers(lo, hi, 16)
		return []trace.Range{r}, err
	}
	return []trace.Range{trace.Just(trace.Name(word))}, nil
}

// set returns an ipset and the key by which a rule with these directions, such as "src,dst", looks into it.
func (f *file) set(name, directions string) (*trace.Set, trace.Expr, error) {
	s := f.sets[name]
	if s == nil {
		return nil, nil, fmt.Errorf("the elements of ipset %s are not known", name)
	}
	list := strings.Split(directions, ",")
	if len(list) < len(s.Parts) {
		return nil, nil, errors.New("it has fewer directions than the set has parts")
	}
	var key trace.Concat
	for i, part := range s.Parts {
		fields, ok := sides[part][list[i]]
		if !ok {
			return nil, nil, fmt.Errorf("part %q of ipset %s is not known", part, name)
		}
		key = append(key, fields...)
	}
	return &s.Set, key, nil
}
