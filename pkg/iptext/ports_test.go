package iptext

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/rules"
)

// dports are the port lists of the rules that a list of ports becomes.
func dports(t *testing.T, ports []uint16) []string {
	t.Helper()
	var out []string
	r := rules.Rule{Chain: rules.Chain{Table: rules.Nat, Name: "X"}, Matches: []rules.Match{rules.TCP, rules.DstPorts{Ports: ports}}, Target: rules.Return{}}
	for _, r := range expand(r, rules.IPv4) {
		line := Print(r)
		parsed, err := ParseRule(rules.Nat, line)
		if err != nil || Print(parsed) != line {
			t.Errorf("%q comes back as %q, %v", line, parsed, err)
		}
		out = append(out, strings.Fields(line)[7])
	}
	return out
}

func every(from, to, step int) []uint16 {
	var out []uint16
	for p := from; p <= to; p += step {
		out = append(out, uint16(p))
	}
	return out
}

func TestPortLists(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ports []uint16
		want  string // one word for each rule
	}{
		{[]uint16{8080, 6379, 6380, 6381}, "8080,6379,6380,6381"},
		{every(1, 15, 1), "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"},
		{every(1, 16, 1), "1:16"},
		{every(1, 65535, 1), "1:65535"},
		{append(every(7001, 7032, 1), 9, 9999), "9,7001:7032,9999"},
		{every(1, 31, 2), "1,3,5,7,9,11,13,15,17,19,21,23,25,27,29 31"},
		{append(every(1, 16, 1), 3, 3, 65535, 65534), "1:16,65534:65535"},
		// seven ranges and one port fill a match; what is left of the last range is no more than a list
		{slices.Concat(every(1, 2, 1), every(11, 12, 1), every(21, 22, 1), every(31, 32, 1), every(41, 42, 1), every(51, 52, 1), every(61, 62, 1), every(71, 75, 1)),
			"1,2,11,12,21,22,31,32,41,42,51,52,61,62 71,72,73,74,75"},
		{slices.Concat(every(1, 30, 1), every(41, 70, 1), every(81, 90, 1), every(101, 110, 1), every(121, 130, 1), every(141, 150, 1), every(161, 170, 1), []uint16{200, 300}),
			"1:30,41:70,81:90,101:110,121:130,141:150,161:170,200 300"},
	} {
		if got := strings.Join(dports(t, c.ports), " "); got != c.want {
			t.Errorf("%v becomes %q, not %q", c.ports, got, c.want)
		}
	}
}

// Whatever the list, its rules hold the same ports, and none has more than the kernel takes.
func TestPortListsHoldTheSame(t *testing.T) {
	t.Parallel()
	dice := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		ports := make([]uint16, 1+dice.IntN(120))
		for i := range ports {
			ports[i] = uint16(1 + dice.IntN(200))
		}
		var got []uint16
		for _, part := range multiports(ports) {
			got = append(got, part...)
		}
		for _, words := range dports(t, ports) {
			if slots := 1 + strings.Count(words, ",") + strings.Count(words, ":"); slots > 15 {
				t.Fatalf("%s takes %d slots", words, slots)
			}
		}
		distinct := func(list []uint16) []uint16 { return slices.Compact(slices.Sorted(slices.Values(list))) }
		if !slices.Equal(distinct(got), distinct(ports)) {
			t.Fatalf("%v becomes %v", ports, got)
		}
	}
}
