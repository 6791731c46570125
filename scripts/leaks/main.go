// leaks reads what `go test -json` prints and prints what `go test` would. With arguments it reads these files instead, and those in
// these folders. It fails if a test failed, or if a credential is in any test's output, also of tests that passed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/detour-cni/detour/scripts/leaks/secret"
)

func main() {
	var err error
	if len(os.Args) > 1 {
		err = readFiles(os.Args[1:])
	} else {
		err = readEvents(os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "leaks: %v\n", err)
		os.Exit(1)
	}
}

// event is a line of `go test -json`.
type event struct{ Action, Package, ImportPath, Test, Output string }

// readEvents prints the output of packages and tests that failed, and of packages that passed the last line.
func readEvents(from io.Reader, to io.Writer) error {
	outputs := map[string]map[string]string{} // by package and test
	var failed error
	found := map[string]bool{}
	ended := 0 // packages
	lines := json.NewDecoder(bufio.NewReader(from))
	for {
		var e event
		if err := lines.Decode(&e); errors.Is(err, io.EOF) {
			if ended == 0 {
				return errors.New("no package was tested")
			}
			return failed
		} else if err != nil {
			return fmt.Errorf("read go test's events: %w", err)
		}
		if s := secret.Find(e.Output); s != "" && !found[e.Package+e.Test] {
			found[e.Package+e.Test] = true
			failed = errors.Join(failed, fmt.Errorf("%s %s printed a credential: %s", e.Package, e.Test, shortened(s)))
		}
		if e.Test == "" && (e.Action == "pass" || e.Action == "fail" || e.Action == "skip") {
			ended++
		}
		tests := outputs[e.Package]
		if tests == nil {
			tests = map[string]string{}
			outputs[e.Package] = tests
		}
		switch {
		case e.Action == "build-output":
			_, _ = fmt.Fprint(to, e.Output)
		case e.Action == "output":
			tests[e.Test] += e.Output
		case e.Action == "fail":
			_, _ = fmt.Fprint(to, tests[e.Test])
			failed = errors.Join(failed, fmt.Errorf("%s %s failed", e.Package, e.Test))
			delete(tests, e.Test)
		case e.Test != "":
			delete(tests, e.Test)
		case e.Action == "pass" || e.Action == "skip":
			out := strings.TrimSuffix(tests[""], "\n")
			fmt.Fprintln(to, out[strings.LastIndexByte(out, '\n')+1:])
		}
	}
}

// shortened is a credential of which nobody can make use.
func shortened(s string) string { return s[:min(len(s), 12)] + "..." }

// readFiles reads files, and folders with all that is in them.
func readFiles(paths []string) (failed error) {
	n := 0
	for _, path := range paths {
		err := filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			n++
			if s := secret.Find(text); s != "" {
				failed = errors.Join(failed, fmt.Errorf("%s has a credential: %s", path, shortened(s)))
			}
			return nil
		})
		failed = errors.Join(failed, err)
	}
	if n == 0 {
		failed = errors.Join(failed, errors.New("there are no files to read"))
	}
	return failed
}
