// Package upgrade is for tests only: earlier versions of detour beside this one. Its own tests have one version's plugin serve what
// another version's has begun, and ask another version's agent.
package upgrade

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// script builds and lists; both folders of tests that use this package are scripts/*.
const script = "../previous.sh"

// Versions are those to upgrade from, the newest first. Without git's history it skips the test, or fails it if the environment says
// REQUIRE_NETNS=1.
func Versions(t testing.TB) []string {
	t.Helper()
	out, err := run()
	nettest.Require(t, err)
	return strings.Fields(out)
}

// Build returns a folder with the version's files, and its programs in bin.
func Build(t testing.TB, version string) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := run(dir, version); err != nil {
		t.Fatalf("build version %s: %v", version, err)
	}
	return dir
}

func run(args ...string) (string, error) {
	path, err := filepath.Abs(script)
	if err != nil {
		return "", err
	}
	out, err := exec.Command(path, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}
