package nftables

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// Differences says, one sentence each, where the kernel's table differs from programmed, which String of the Table printed: a
// chain or a set that is missing or somebody else's, a rule that is missing, altered or added. A changed list is a
// difference of the rule that looks it up. Whether the gate is open is none. The order is that of programmed.
func Differences(programmed string) ([]string, error) {
	want, err := parseListing(programmed)
	if err != nil {
		return nil, err
	}
	got, err := Read()
	if err != nil {
		return nil, err
	}
	own := func(f nft.Family, table string) bool { return f == nft.Inet && table == tableName }
	dormant, err := nft.Dormant(own)
	foreign, err2 := nft.Foreign(want.families(), own)
	return slices.Concat(dormant, compare(want, got), foreign), errors.Join(err, err2)
}

// families are those that the table redirects.
func (l Listing) families() []rules.Family {
	for _, f := range rules.Families {
		c := compiler{families: []rules.Family{f}}
		only := c.onlyOne()[0].String()
		if slices.ContainsFunc(l, func(b block) bool { return slices.Contains(b.lines, only) }) {
			return c.families
		}
	}
	return rules.Families
}

func compare(want, got Listing) []string {
	if len(got) == 0 && len(want) > 0 {
		return []string{tableHead + " is missing"}
	}
	var out []string
	for _, w := range want {
		if i := got.find(w.name); i >= 0 {
			out = append(out, w.differences(got[i])...)
		} else {
			out = append(out, w.name+" is missing")
		}
	}
	for _, g := range got {
		if want.find(g.name) < 0 {
			out = append(out, g.name+" is not detour's")
		}
	}
	return out
}

func (l Listing) find(name string) int {
	return slices.IndexFunc(l, func(b block) bool { return b.name == name })
}

func (b block) differences(got block) []string {
	var out []string
	wantHead, wantRules := b.split()
	gotHead, gotRules := got.split()
	if gotHead != wantHead {
		out = append(out, fmt.Sprintf("%s is %q, not %q", b.name, gotHead, wantHead))
	}
	name := strings.TrimPrefix(b.name, "chain ")
	for i := range max(len(wantRules), len(gotRules)) {
		switch {
		case i >= len(gotRules):
			out = append(out, fmt.Sprintf("rule %d of %s is missing: %s", i+1, name, brief(wantRules[i], "")))
		case i >= len(wantRules):
			out = append(out, fmt.Sprintf("rule %d of %s is not detour's: %s", i+1, name, brief(gotRules[i], "")))
		case gotRules[i] != wantRules[i]:
			out = append(out, fmt.Sprintf("rule %d of %s is %s, not %s", i+1, name, brief(gotRules[i], wantRules[i]), brief(wantRules[i], gotRules[i])))
		}
	}
	return out
}

// split separates the line of a set or of a hook from the rules.
func (b block) split() (head string, rules []string) {
	if len(b.lines) > 0 && strings.HasPrefix(b.lines[0], typePrefix) {
		return b.lines[0], b.lines[1:]
	}
	return "", b.lines
}

// maxNamed is how many of a list's entries a sentence names.
const maxNamed = 5

// brief shortens a long list in the rule: it leaves out what other has as well, and all but some of the rest.
func brief(rule, other string) string {
	before, list, after, ok := cutList(rule)
	if !ok || len(list) <= maxNamed {
		return rule
	}
	_, others, _, _ := cutList(other)
	inBoth := map[string]bool{}
	for _, o := range others {
		inBoth[o] = true
	}
	left := slices.DeleteFunc(slices.Clone(list), func(e string) bool { return inBoth[e] })
	if len(left) > maxNamed {
		left = left[:maxNamed]
	}
	if rest := len(list) - len(left); rest > 0 {
		left = append(left, fmt.Sprintf("%d more", rest))
	}
	return before + "{ " + strings.Join(left, ", ") + " }" + after
}

func cutList(rule string) (before string, list []string, after string, ok bool) {
	before, rest, opened := strings.Cut(rule, "{ ")
	inner, after, closed := strings.Cut(rest, " }")
	return before, strings.Split(inner, ", "), after, opened && closed
}
