package nettest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// programsVar makes TestProgramsChild do its work: it is for the process that TestProgramsAreKnownToTheCache starts.
const programsVar = "NETTEST_PROGRAMS_CHILD"

var detourPrograms = Programs("../../plugin/detour")

// What go test writes down of a test, for its cache, has all that a program was built of and reads.
func TestProgramsAreKnownToTheCache(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	child := exec.Command(os.Args[0], "-test.run=^TestProgramsChild$", "-test.testlogfile="+log)
	child.Env = append(os.Environ(), programsVar+"=1", "TMPDIR="+dir)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, used := range []string{
		"open " + root + "/plugin/detour", "open " + root + "/pkg/cniplugin", "open " + root + "/pkg/pod", "open " + root + "/go.mod",
		"open ../../testdata/demo/osm", "getenv " + hostVar,
	} {
		if !strings.Contains(string(text), used+"\n") {
			t.Errorf("go test is not told: %s", used)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind beside the log: %v, %v", left, err)
	}
}

func TestProgramsChild(t *testing.T) {
	if os.Getenv(programsVar) != "1" {
		t.Skip("run by TestProgramsAreKnownToTheCache")
	}
	RequireProgram(t, "go")
	if _, err := os.Stat(filepath.Join(detourPrograms(t), "detour")); err != nil {
		t.Error(err)
	}
	ReadByPrograms(t, "../../testdata/demo")
}

func TestWhatDoesNotBuildOrIsNotThereFails(t *testing.T) {
	t.Parallel()
	broken := Programs("./no-such-package")
	for range 2 {
		if got := outcomeOf(func(t TB) { broken(t) }); !strings.HasPrefix(got, "failed: go build: ") || !strings.Contains(got, "no-such-package") {
			t.Errorf("got %q", got)
		}
	}
	if got := outcomeOf(func(t TB) { ReadByPrograms(t, "no-such-folder") }); !strings.HasPrefix(got, "failed: ") {
		t.Errorf("got %q", got)
	}
}
