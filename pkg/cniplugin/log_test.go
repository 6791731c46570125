package cniplugin_test

import (
	"os"
	"testing"
)

// The log is everybody's on the node: each call adds to it, and none makes it readable, or writable, for all.
func TestTheLogIsAppendedToAndNotForEveryone(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	a.file("log", `{"msg":"of another pod"}`+"\n")
	a.must("ADD")
	a.must("ADD")
	if lines := a.logged(); len(lines) != 3 || lines[0]["msg"] != "of another pod" || lines[1]["verb"] != "ADD" || lines[2]["verb"] != "ADD" {
		t.Errorf("the log is %v", lines)
	}
	if err := os.Remove(a.path("log")); err != nil {
		t.Fatal(err)
	}
	add := a.command("ADD")
	add.Path, add.Args = "/bin/sh", []string{"sh", "-c", "umask 0; exec " + add.Path}
	if out, err := add.Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if info, err := os.Stat(a.path("log")); err != nil || info.Mode() != 0o640 {
		t.Errorf("got %v, %v", info, err)
	}
}
