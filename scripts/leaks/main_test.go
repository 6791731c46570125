package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"

func TestEventsBecomeWhatGoTestPrints(t *testing.T) {
	for name, tt := range map[string]struct{ events, printed, failed string }{
		"all pass": {`{"Action":"output","Package":"a","Test":"T","Output":"=== RUN T\n"}
			{"Action":"pass","Package":"a","Test":"T"}
			{"Action":"output","Package":"a","Output":"PASS\n"}
			{"Action":"output","Package":"a","Output":"ok  \ta\t1s\n"}
			{"Action":"pass","Package":"a"}`, "ok  \ta\t1s\n", ""},
		"a test fails": {`{"Action":"output","Package":"a","Test":"T","Output":"t_test.go:1: no\n"}
			{"Action":"fail","Package":"a","Test":"T"}
			{"Action":"output","Package":"a","Output":"FAIL\ta\t1s\n"}
			{"Action":"fail","Package":"a"}`, "t_test.go:1: no\nFAIL\ta\t1s\n", "a T failed"},
		"a test that passes logs a token": {`{"Action":"output","Package":"a","Test":"T","Output":"level=INFO msg=` + token + `\n"}
			{"Action":"pass","Package":"a","Test":"T"}
			{"Action":"output","Package":"a","Output":"ok  \ta\t1s\n"}
			{"Action":"pass","Package":"a"}`, "ok  \ta\t1s\n", "a T printed a credential: eyJhbGciOiJS..."},
		"nothing runs": {"", "", "no package was tested"},
		"it does not build": {`{"ImportPath":"a","Action":"build-output","Output":"a.go:1: syntax\n"}
			{"Action":"fail","Package":"a"}`, "a.go:1: syntax\n", "a  failed"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			err := readEvents(strings.NewReader(tt.events), &out)
			if out.String() != tt.printed {
				t.Errorf("printed %q, want %q", out.String(), tt.printed)
			}
			if (err == nil) != (tt.failed == "") || err != nil && !strings.Contains(err.Error(), tt.failed) {
				t.Errorf("got %v, want %q", err, tt.failed)
			}
			if err != nil && strings.Contains(err.Error(), token) {
				t.Error("it prints the token, too")
			}
		})
	}
}

func TestFilesAreReadInAllFolders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a", "b.log")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"nothing": "", "a " + token: "b.log has a credential"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readFiles([]string{dir}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	if err := readFiles([]string{t.TempDir()}); err == nil {
		t.Error("nothing to read is no error")
	}
}
