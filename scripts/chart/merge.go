package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pmezard/go-difflib/difflib"
)

// variant is an object's text as it is when a condition holds.
type variant struct{ when, text string }

// change replaces lines of the base by those that a variant has there.
type change struct {
	from, to int // to is behind the last
	when     string
	lines    []string
}

// merge writes an object and its variants as one template. Variants may hold together if they only insert lines; of those that
// replace the same lines, one at most may hold.
func merge(base string, variants []variant) (string, error) {
	lines := splitLines(base)
	changes := make([][]change, len(lines)+1) // by from
	for _, v := range variants {
		for _, c := range compare(lines, v) {
			changes[c.from] = append(changes[c.from], c)
		}
	}
	var text strings.Builder
	for at := 0; at <= len(lines); {
		to := at
		branch := "{{- if "
		for _, c := range changes[at] {
			switch {
			case c.to == at:
				text.WriteString("{{- if " + c.when + " }}\n" + strings.Join(c.lines, "") + "{{- end }}\n")
			case to != at && to != c.to || slices.ContainsFunc(changes[at+1:c.to], func(cs []change) bool { return cs != nil }):
				return "", fmt.Errorf("what changes with `%s` overlaps with another change:\n%s", c.when, strings.Join(lines[at:c.to], ""))
			default:
				text.WriteString(branch + c.when + " }}\n" + strings.Join(c.lines, ""))
				to, branch = c.to, "{{- else if "
			}
		}
		switch {
		case to > at:
			text.WriteString("{{- else }}\n" + strings.Join(lines[at:to], "") + "{{- end }}\n")
			at = to
		case at < len(lines):
			text.WriteString(lines[at])
			fallthrough
		default:
			at++
		}
	}
	return text.String(), nil
}

// compare finds what makes the variant of the base.
func compare(base []string, v variant) []change {
	lines := splitLines(v.text)
	var changes []change
	for _, c := range difflib.NewMatcherWithJunk(base, lines, false, nil).GetOpCodes() {
		if c.Tag != 'e' {
			changes = append(changes, change{c.I1, c.I2, v.when, lines[c.J1:c.J2]})
		}
	}
	return changes
}

func splitLines(text string) []string { return slices.Collect(strings.Lines(text)) }
