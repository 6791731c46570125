package build

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The linker ignores a variable that does not exist.
func TestTheBuildScriptSetsVersionAndCommit(t *testing.T) {
	commit, err := exec.CommandContext(t.Context(), "git", "rev-parse", "HEAD").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	dir := t.TempDir()
	script := exec.CommandContext(t.Context(), "../../scripts/build.sh", "./plugin/detour")
	script.Env = append(os.Environ(), "OUT="+dir, "VERSION=v9.8.7")
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	about, err := exec.CommandContext(t.Context(), dir+"/detour").CombinedOutput()
	if want := "CNI plugin detour v9.8.7 (commit " + strings.TrimSpace(string(commit)) + ", go"; err != nil || !strings.HasPrefix(string(about), want) {
		t.Errorf("%v: %s\nwant %s", err, about, want)
	}
}
