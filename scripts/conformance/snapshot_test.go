package conformance

import (
	"regexp"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// snapshots are the commands that list what a plugin may leave in a namespace.
var snapshots = []struct{ what, command string }{
	{"IPv4 rules", "iptables-save"},
	{"IPv6 rules", "ip6tables-save"},
	{"addresses on lo", "ip -o addr show dev lo"},
	{"IPv4 routing rules", "ip -4 rule show"},
	{"IPv6 routing rules", "ip -6 rule show"},
	{"IPv4 routes of table 133", "ip -4 route show table 133 2>/dev/null || true"},
	{"IPv6 routes of table 133", "ip -6 route show table 133 2>/dev/null || true"},
}

// varying is what differs from run to run: counters and the comments with the time. And detour adds an address without a
// look for duplicates, which lo knows nothing of.
var varying = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]| nodad`)

// snapshot lists what is in a namespace. Tables without a rule and a chain of their own count as absent.
func snapshot(t *testing.T, ns *nettest.Namespace) map[string]string {
	t.Helper()
	held := map[string]string{}
	for _, s := range snapshots {
		held[s.what] = withoutEmptyTables(varying.ReplaceAllString(output(t, ns, command(t, "sh", "-c", s.command)), ""))
	}
	return held
}

// withoutEmptyTables drops the tables of iptables-save that hold nothing: a program that only looks makes them.
func withoutEmptyTables(saved string) string {
	var kept strings.Builder
	for table := range strings.SplitAfterSeq(saved, "COMMIT\n") {
		if !strings.HasPrefix(table, "*") || strings.Contains(table, "\n-A ") || strings.Contains(table, " - ") {
			kept.WriteString(table)
		}
	}
	return kept.String()
}

// compare fails the test where ours differs from theirs.
func compare(t *testing.T, ours, theirs map[string]string) {
	t.Helper()
	for _, s := range snapshots {
		if ours[s.what] != theirs[s.what] {
			t.Errorf("%s differ (- the mesh's, + detour's):\n%s", s.what, difference(theirs[s.what], ours[s.what]))
		}
	}
}

// difference lists the lines that only one of two texts has, in their order, or both texts where only the order differs.
func difference(before, after string) string {
	var lines []string
	for line := range strings.Lines(before) {
		if !has(after, line) {
			lines = append(lines, "- "+line)
		}
	}
	for line := range strings.Lines(after) {
		if !has(before, line) {
			lines = append(lines, "+ "+line)
		}
	}
	if lines == nil {
		return "the order:\n--- the mesh's\n" + before + "+++ detour's\n" + after
	}
	return strings.Join(lines, "")
}

func has(text, line string) bool { return strings.Contains("\n"+text, "\n"+line) }
