package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every flag and every reason of an Event has a row in deploy/README.md, and every such row is of one that exists.
func TestTheOperatorsPageHasEveryFlagAndEvent(t *testing.T) {
	var flags []string
	for _, c := range []*cobra.Command{runCommand(), uninstallCommand(), uninstallNodesCommand()} {
		c.Flags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
	}
	reasons := found(sources(t, "../../pkg"), `"(Detour[A-Z][A-Za-z]+)"`)
	page := operatorsPage(t)
	for row, want := range map[string][]string{"--([a-z-]+)": unique(flags), "(Detour[A-Za-z]+)": reasons} {
		if got := found(page, "(?m)^\\| `"+row+"`"); !slices.Equal(got, want) {
			t.Errorf("deploy/README.md has %q\nwant %q", got, want)
		}
	}
}

// Every event of the agent's log has a row in deploy/README.md with its level, and every such row is of one that exists.
func TestTheOperatorsPageHasEveryLogEvent(t *testing.T) {
	code := sources(t, "../../pkg/agent") + sources(t, "../../pkg/install")
	page := operatorsPage(t)
	for _, level := range []string{"Info", "Warn", "Error"} {
		want := found(code, level+`\([^\n]*"event", "([a-z-]+)"`)
		got := found(page, "(?m)^\\| `([a-z-]+)` \\| "+strings.ToLower(level)+" \\|")
		if !slices.Equal(got, want) {
			t.Errorf("deploy/README.md has the events %q\nof level %s, want %q", got, level, want)
		}
	}
}

// operatorsPage is deploy/README.md up to the webhook's part, which detour-webhook tests.
func operatorsPage(t *testing.T) string {
	t.Helper()
	page, _, ok := strings.Cut(read(t, "../../deploy/README.md"), "## Reference of the webhook")
	if !ok {
		t.Error("deploy/README.md has no reference of the webhook")
	}
	return page
}

// found returns what the pattern's group matches, sorted, each once.
func found(text, pattern string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	return unique(all)
}

func unique(all []string) []string {
	slices.Sort(all)
	return slices.Compact(all)
}

// Every message that deploy/TROUBLESHOOTING.md quotes in a table stands in the code, between what differs from case to case.
func TestTroubleshootingQuotesTheCode(t *testing.T) {
	code := sources(t, "../../pkg") + sources(t, "../../plugin")
	quotes := quotedMessages(read(t, "../../deploy/TROUBLESHOOTING.md"))
	if len(quotes) < 60 {
		t.Fatalf("only %d messages were found", len(quotes))
	}
	for _, quote := range quotes {
		for part := range strings.SplitSeq(quote, "…") {
			if part = strings.Trim(part, " :;,"); !strings.Contains(code, part) {
				t.Errorf("no code says %q, which is part of the message %q", part, quote)
			}
		}
	}
}

// quotedMessages returns what is quoted in the first column of the tables of messages.
func quotedMessages(text string) []string {
	var quotes []string
	heads := []string{"message", "reason", "warning", "line"}
	inside := false
	for line := range strings.Lines(text) {
		cells := strings.Split(line, " | ")
		first := strings.Trim(cells[0], "| \n")
		inside = strings.HasPrefix(line, "|") && (inside || slices.Contains(heads, first))
		if !inside {
			continue
		}
		for i, quote := range strings.Split(first, "`") {
			if i%2 == 1 {
				quotes = append(quotes, quote)
			}
		}
	}
	return quotes
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sources is the code under a folder, without tests.
func sources(t *testing.T, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			all.WriteString(read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
