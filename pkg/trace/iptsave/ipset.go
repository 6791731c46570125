package iptsave

import (
	"errors"
	"fmt"
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
