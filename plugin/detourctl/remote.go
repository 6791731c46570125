package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// remoteReader returns what kubectl detour says of its reader: the width of the terminal, 0 if there is none, and whether it has colour.
// ok is false if detourctl was not started by kubectl detour.
func remoteReader() (width int, colour, ok bool) {
	_, err := fmt.Sscan(os.Getenv("KUBECTL_DETOUR"), &width, &colour) //nolint:forbidigo // by kubectl detour
	return width, colour, err == nil
}

// errorStream is standard error. kubectl detour reads a container's log, which has both streams in one, and tells them apart by a mark.
func errorStream() io.Writer {
	if _, _, ok := remoteReader(); ok {
		return marked{os.Stderr}
	}
	return os.Stderr
}

// marked begins each line with a mark. What is written to it must be whole lines.
type marked struct{ io.Writer }

func (m marked) Write(text []byte) (int, error) {
	const mark = "\x1e"
	for line := range strings.Lines(string(text)) {
		if _, err := io.WriteString(m.Writer, mark+line); err != nil {
			return 0, err
		}
	}
	return len(text), nil
}
