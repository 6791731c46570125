package nettest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// built are the folders of Programs, for Main to remove.
var built struct {
	sync.Mutex
	dirs []string
}

// Programs returns a function that returns a folder with the programs of the packages, named as for go build. The first
// test that asks for it builds them, as scripts/build.sh does; Main removes the folder. A test that builds in another way
// may pass out of go test's cache although what it runs has changed.
func Programs(packages ...string) func(TB) string {
	build := sync.OnceValues(func() (string, error) { return buildPrograms(packages) })
	return func(t TB) string {
		t.Helper()
		dir, err := build()
		if err != nil {
			t.Fatalf("%v", err)
		}
		return dir
	}
}

func buildPrograms(packages []string) (string, error) {
	dir, err := os.MkdirTemp("", "nettest-bin-")
	if err != nil {
		return "", err
	}
	built.Lock()
	built.dirs = append(built.dirs, dir)
	built.Unlock()
	build := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", dir + "/"}
	if _, err := goTool(append(build, packages...)); err != nil {
		return "", err
	}
	return dir, openSources(packages)
}

// ReadByPrograms names a file or folder of this module that only a program reads which the test starts. go test's cache
// keeps a result while the files and folders that the test itself has opened stay as they are, so this opens them.
func ReadByPrograms(t TB, path string) {
	t.Helper()
	// A folder that is read stands for what is in it.
	if err := filepath.WalkDir(path, func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		t.Fatalf("%v", err)
	}
}

// openSources opens what the programs were built of, for the cache. The folder of a package stands for the files in it,
// and go.mod for the packages of other modules.
func openSources(packages []string) error {
	const sources = `{{with .Module}}{{if .Main}}{{$.Dir}}{{"\n"}}{{.GoMod}}{{end}}{{end}}`
	list, err := goTool(append([]string{"list", "-deps", "-f", sources}, packages...))
	if err != nil {
		return err
	}
	for path := range strings.FieldsSeq(list) {
		file, err := os.Open(path)
		if err != nil {
			return err
		}
		file.Close()
	}
	return nil
}

func goTool(args []string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), wrap("go "+args[0], err)
}

func removePrograms() error {
	var errs []error
	for _, dir := range built.dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
