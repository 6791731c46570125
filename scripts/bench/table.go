package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one line of the table.
type row struct {
	number, what, floor, detour, ratio, limit, verdict string
}

var head = row{"", "what", "floor", "detour", "ratio", "limit", ""}

func (r row) cells() []string {
	return []string{r.number, r.what, r.floor, r.detour, r.ratio, r.limit, r.verdict}
}

// limit bounds a value. The zero limit does not.
type limit struct {
	value   float64
	atLeast bool // instead of at most
}

func (l limit) String() string {
	switch {
	case l == limit{}:
		return ""
	case l.atLeast:
		return fmt.Sprintf("≥ %g", l.value)
	}
	return fmt.Sprintf("≤ %g", l.value)
}

func (l limit) verdict(value float64) string {
	switch {
	case l == limit{}:
		return ""
	case value == l.value, (value > l.value) == l.atLeast:
		return "met"
	}
	return "**missed**"
}

// compared is the row of two times and their ratio.
func compared(number, what string, floor, detour time.Duration, l limit) row {
	ratio := float64(detour) / float64(floor)
	return row{number, what, ms(floor), ms(detour), fmt.Sprintf("%.2f", ratio), l.String(), l.verdict(ratio)}
}

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d)/1e6) }

// printTable prints a Markdown table with aligned columns.
func printTable(out io.Writer, rows []row) {
	widths := make([]int, len(head.cells()))
	for _, r := range append(slices.Clone(rows), head) {
		for i, c := range r.cells() {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	rule := make([]string, len(widths))
	for i, w := range widths {
		rule[i] = strings.Repeat("-", w)
	}
	printLine(out, head.cells(), widths)
	printLine(out, rule, widths)
	for _, r := range rows {
		printLine(out, r.cells(), widths)
	}
}

func printLine(out io.Writer, cells []string, widths []int) {
	for i, c := range cells {
		fmt.Fprintf(out, "| %-*s ", widths[i], c)
	}
	fmt.Fprintln(out, "|")
}

// median returns the middle of values, the lower of two. values must not be empty.
func median[T cmp.Ordered](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[(len(sorted)-1)/2]
}
