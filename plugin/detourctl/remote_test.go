package main

import (
	"bytes"
	"fmt"
	"testing"
)

func TestRemoteErrorsAreMarkedLineByLine(t *testing.T) {
	var out bytes.Buffer
	n, err := fmt.Fprint(marked{&out}, "one\ntwo\n")
	if err != nil || n != 8 || out.String() != "\x1eone\n\x1etwo\n" {
		t.Errorf("got %d, %v, %q", n, err, out.String())
	}
}

func TestARemoteReadersTerminalCounts(t *testing.T) {
	for value, want := range map[string]screen{
		"100 true": {width: 100, colour: true},
		"0 false":  {},
		"":         {},
		"wide":     {},
	} {
		t.Setenv("KUBECTL_DETOUR", value)
		c := verifyCommand()
		c.SetOut(&bytes.Buffer{})
		if got := screenOf(c); got.width != want.width || got.colour != want.colour {
			t.Errorf("%q: got %+v", value, got)
		}
	}
}
