package install

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// tracedVerb and tracedRoot are for the process that TestWhatIsChangedIsOnTheDisk traces.
const (
	tracedVerb = "DETOUR_INSTALL_TRACED_VERB"
	tracedRoot = "DETOUR_INSTALL_TRACED_ROOT"
)

func TestTraced(t *testing.T) {
	root := os.Getenv(tracedRoot)
	if root == "" {
		t.Skip("run by TestWhatIsChangedIsOnTheDisk")
	}
	i, err := New(at(root))
	if err != nil {
		t.Fatal(err)
	}
	if err := crashDo(i, os.Getenv(tracedVerb)); err != nil {
		t.Fatal(err)
	}
}

// After a power failure the files are those of some moment: each is on the disk before it gets its name, and each name
// before the next changes. A kernel that goes on shows nothing of that, so the test looks at the system calls.
func TestWhatIsChangedIsOnTheDisk(t *testing.T) {
	nettest.RequireProgram(t, "strace")
	for name, c := range crashNetworks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.files)
			for _, verb := range []string{"install", "uninstall"} {
				calls := trace(t, filepath.Dir(w.BinDir), verb)
				if names := checkSynced(t, verb, calls); names < 3 {
					t.Errorf("%s: the trace has %d changes of names:\n%s", verb, names, strings.Join(calls, "\n"))
				}
			}
		})
	}
}

// trace returns the system calls of a verb that change files below root, or sync them.
func trace(t *testing.T, root, verb string) []string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "trace")
	const calls = "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,write,pwrite64,writev,copy_file_range,sendfile,splice"
	cmd := exec.Command("strace", "-f", "-y", "-qq", "-e", "signal=none", "-e", calls, "-o", out, os.Args[0], "-test.run=^TestTraced$")
	cmd.Env = append(os.Environ(), tracedRoot+"="+root, tracedVerb+"="+verb)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, root) && !strings.Contains(line, " = -1 ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

var (
	call   = regexp.MustCompile(`^\d+ +(\w+)\(`)
	opened = regexp.MustCompile(`\d+<([^>]*)>`) // what strace -y says of a file descriptor
	quoted = regexp.MustCompile(`"([^"]*)"`)
)

// checkSynced reports what is not on the disk when it should be, and returns how many names changed.
func checkSynced(t *testing.T, verb string, calls []string) (names int) {
	t.Helper()
	dirty := map[string]bool{} // files and folders that were changed since they were synced
	for _, line := range calls {
		switch m := call.FindStringSubmatch(line); {
		case m == nil: // the end of a call that another thread interrupted
		case strings.HasSuffix(m[1], "sync"):
			delete(dirty, opened.FindStringSubmatch(line)[1])
		case strings.Contains(m[1], "link"), strings.HasPrefix(m[1], "rename"):
			paths := quoted.FindAllStringSubmatch(line, 2)
			changed := paths[len(paths)-1][1]
			if isTemp(filepath.Base(changed)) {
				continue // nobody looks for it
			}
			if len(dirty) > 0 {
				t.Errorf("%s: not on the disk is %q at %s", verb, slices.Sorted(maps.Keys(dirty)), line)
			}
			names++
			dirty[filepath.Dir(changed)] = true
		default:
			for _, file := range opened.FindAllStringSubmatch(line, -1) {
				if isTemp(filepath.Base(file[1])) {
					dirty[file[1]] = true
				}
			}
		}
	}
	if len(dirty) > 0 {
		t.Errorf("%s: not on the disk is %q at the end", verb, slices.Sorted(maps.Keys(dirty)))
	}
	return names
}
