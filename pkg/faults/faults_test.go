package faults_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/faults"
)

// script writes a file by a child, and moves it.
const script = `mkdir "$0/d" && cat /proc/self/comm >"$0/d/tmp" && mv "$0/d/tmp" "$0/d/file"`

func command(t *testing.T) (cmd *exec.Cmd, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may filter system calls of programs that keep their privileges")
	}
	dir = t.TempDir()
	return exec.Command("sh", "-c", script, dir), dir
}

func record(t *testing.T) []faults.Call {
	t.Helper()
	cmd, _ := command(t)
	calls, err := faults.Record(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

func run(t *testing.T, cmd *exec.Cmd, fault faults.Fault) faults.Result {
	t.Helper()
	r, err := faults.Run(cmd, fault)
	if err != nil {
		t.Fatal(err)
	}
	r.Wait()
	return r
}

func TestTheCallsOfAProgramAndItsChildrenAreOneSequence(t *testing.T) {
	t.Parallel()
	var seen []string
	for i, c := range record(t) {
		if c.N != i+1 {
			t.Errorf("%s is number %d", &c, i+1)
		}
		for _, name := range []string{"mkdir", "write", "rename"} {
			if strings.HasPrefix(c.Name, name) {
				seen = append(seen, c.Program+"'s "+name)
			}
		}
	}
	if want := []string{"mkdir's mkdir", "cat's write", "mv's rename"}; !slices.Equal(seen, want) {
		t.Errorf("got %q, want %q", seen, want)
	}
}

func TestAProgramIsKilledBeforeEachOfItsCalls(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for n := 1; ; n++ {
		cmd, dir := command(t)
		r := run(t, cmd, faults.KillBefore(n, faults.All))
		state := look(t, dir)
		seen[state] = true
		if r.Struck == nil {
			if r.Err != nil || state != "file" {
				t.Errorf("not struck: %v, %q", r.Err, state)
			}
			break
		}
		if r.Err == nil {
			t.Errorf("killed before %s, it succeeds", r.Struck)
		}
	}
	for _, state := range []string{"", "d", "tmp", "file"} {
		if !seen[state] {
			t.Errorf("no kill has left the state %q", state)
		}
	}
}

func look(t *testing.T, dir string) string {
	t.Helper()
	for _, name := range []string{"d/file", "d/tmp", "d"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Base(name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return ""
}

func TestACallFailsAndNeverReachesTheKernel(t *testing.T) {
	t.Parallel()
	cmd, dir := command(t)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	r := run(t, cmd, func(c faults.Call) faults.Action {
		if strings.HasPrefix(c.Name, "mkdir") {
			return faults.Errno(unix.ENOSPC)
		}
		return faults.Action{}
	})
	if r.Err == nil || r.Struck == nil || !r.Struck.Child || !strings.Contains(stderr.String(), "No space left") || look(t, dir) != "" {
		t.Errorf("got %+v, %s, %q", r, stderr.String(), look(t, dir))
	}
}

func TestOnlyTheCallerDies(t *testing.T) {
	t.Parallel()
	cmd, _ := command(t)
	r := run(t, cmd, func(c faults.Call) faults.Action {
		if strings.HasPrefix(c.Name, "mkdir") {
			return faults.Kill(faults.Caller)
		}
		return faults.Action{}
	})
	var exit *exec.ExitError
	if !errors.As(r.Err, &exit) || exit.ExitCode() != 128+int(unix.SIGKILL) {
		t.Errorf("got %v, want the shell's report of its child", r.Err)
	}
}

// A runtime does not wait for what a killed program left; Wait does.
func TestRunReturnsWithTheProgramAndWaitWithItsChildren(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", `sleep 1000 & echo $! >"$0/pid"; cat "$0/pid"; kill $!`, dir)
	began := time.Now()
	r, err := faults.Run(cmd, func(c faults.Call) faults.Action {
		if c.Child && strings.HasSuffix(c.Detail, "/pid") {
			return faults.Kill(faults.Program)
		}
		return faults.Action{}
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Struck == nil || time.Since(began) > faults.Patience {
		t.Fatalf("got %+v", r)
	}
	if err := exec.Command("sh", "-c", `kill $(cat "$0/pid")`, dir).Run(); err != nil {
		t.Errorf("the child has ended: %v", err)
	}
	r.Wait()
}
