package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// screen is where a verb prints for a reader.
type screen struct {
	io.Writer
	width  int // in columns; 0 if nothing needs to be cut
	colour bool
}

// screenOf is a command's standard output: with its width and in colour if it is a terminal or kubectl detour's reader has one, and without
// colour if NO_COLOR is set (https://no-color.org).
func screenOf(c *cobra.Command) screen {
	s := screen{Writer: c.OutOrStdout()}
	file, ok := s.Writer.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		s.width, s.colour, _ = remoteReader()
		return s
	}
	if width, _, err := term.GetSize(int(file.Fd())); err == nil {
		s.width = width
	}
	s.colour = os.Getenv("NO_COLOR") == "" //nolint:forbidigo // https://no-color.org
	return s
}

// style is an SGR code.
type style string

const (
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

func (s screen) styled(as style, text string) string {
	text = plain(text)
	if !s.colour || text == "" {
		return text
	}
	return "\x1b[" + string(as) + "m" + text + "\x1b[0m"
}

// plain escapes control characters: comments and names come from whoever writes rules, and must not steer the terminal or begin a line.
func plain(text string) string {
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// cut shortens a line to the width that is left after indent columns. Cut before styling.
func (s screen) cut(line string, indent int) string {
	line = plain(line)
	room := s.width - indent
	runes := []rune(line)
	if s.width == 0 || len(runes) <= room || room < 1 {
		return line
	}
	return string(runes[:room-1]) + "…"
}

// output is the flag -o of every verb that answers.
type output string

func (o *output) register(c *cobra.Command) {
	c.Flags().StringVarP((*string)(o), "output", "o", "text", "output format: text or json")
}

func (o output) check() error {
	if o != "text" && o != "json" {
		return fmt.Errorf("--output: %q is neither text nor json", o)
	}
	return nil
}

func printJSON(out io.Writer, value any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(value)
}
