package doctor

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func wantCheck(t *testing.T, c Check, result Result, found string) {
	t.Helper()
	if c.Result != result || !strings.Contains(c.Found, found) || (result != Fine) != (c.Do != "") {
		t.Errorf("%+v, want %s, %q", c, result, found)
	}
}

func TestTheListThatTheRuntimeLoads(t *testing.T) {
	const other, own = `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}`, `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"detour"}]}`
	for name, c := range map[string]struct {
		files  map[string]string
		result Result
		found  string
	}{
		"no file":            {nil, Limited, "has no network configuration"},
		"not installed":      {map[string]string{"10-a.conflist": other}, Limited, "no list in "},
		"installed":          {map[string]string{"10-a.conflist": own, "20-b.conflist": other}, Fine, "bridge, detour"},
		"another is ahead":   {map[string]string{"05-b.conflist": other, "10-a.conflist": own}, Wrong, "05-b.conflist: bridge, and not "},
		"garbage is ahead":   {map[string]string{"05-b.conf": "{", "10-a.conflist": own}, Wrong, "05-b.conf, which is first, is invalid"},
		"detour is first":    {map[string]string{"10-a.conflist": strings.Replace(own, `{"type":"bridge"},`, "", 1)}, Wrong, "calls detour first"},
		"no JSON, no matter": {map[string]string{"05-b.txt": "{", "10-a.conflist": own}, Fine, "bridge, detour"},
		"behind Multus": {map[string]string{"00-multus.conf": `{"cniVersion":"1.0.0","name":"m","type":"multus-shim","clusterNetwork":"/host/etc/cni/net.d/10-a.conflist"}`, "10-a.conflist": own},
			Fine, "10-a.conflist: bridge, detour"},
		"in Multus's delegate": {map[string]string{"00-multus.conf": `{"cniVersion":"1.0.0","name":"m","type":"multus","delegates":[` + own + `]}`}, Fine, "first delegate): bridge, detour"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				write(t, filepath.Join(dir, file), text, 0o600)
			}
			all, err := lists(dir)
			wantCheck(t, checkList(dir, all, err), c.result, c.found)
		})
	}
}

func TestTheFolders(t *testing.T) {
	nettest.RequireNetns(t) // and so may mount
	dir := t.TempDir()
	mount := func(name, options string, flags uintptr) string {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", flags, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
		return path
	}
	ample := mount("ample", "size=8m,mode=0700", 0)
	open := mount("open", "size=8m,mode=0755", 0)
	small := mount("small", "size=64k,mode=0700", 0)
	few := mount("few", "size=8m,nr_inodes=5,mode=0700", 0)
	readOnly := mount("read-only", "size=8m,mode=0700", unix.MS_RDONLY)
	noexec := mount("noexec", "size=8m", unix.MS_NOEXEC)
	write(t, filepath.Join(noexec, "detour"), "x", 0o755)
	write(t, filepath.Join(ample, "detour"), "x", 0o755)
	write(t, filepath.Join(open, "detour"), "x", 0o644)
	file := write(t, filepath.Join(dir, "file"), "", 0o600)

	wantCheck(t, checkStateDir(ample), Fine, "MiB")
	wantCheck(t, checkStateDir(filepath.Join(ample, "a/b")), Fine, "ADD makes it")
	wantCheck(t, checkStateDir(open), Limited, "mode is 0755")
	wantCheck(t, checkStateDir(small), Wrong, "0 MiB")
	wantCheck(t, checkStateDir(few), Wrong, "inodes")
	wantCheck(t, checkStateDir(readOnly), Wrong, readOnly)
	wantCheck(t, checkStateDir(filepath.Join(readOnly, "detour")), Wrong, readOnly)
	wantCheck(t, checkStateDir(file), Wrong, "is not a folder")
	wantCheck(t, checkStateDir(filepath.Join(file, "detour")), Wrong, "not a directory")

	wantCheck(t, checkFolder(CheckConfDir, ample), Fine, ample)
	wantCheck(t, checkFolder(CheckConfDir, filepath.Join(ample, "none")), Fine, "does not exist")
	wantCheck(t, checkFolder(CheckConfDir, readOnly), Wrong, "read-only")

	wantCheck(t, checkPlugin(ample), Fine, "detour")
	wantCheck(t, checkPlugin(open), Wrong, "is no program")
	wantCheck(t, checkPlugin(noexec), Wrong, "noexec")
	wantCheck(t, checkPlugin(small), Wrong, "no such file")
}

func TestTheTokenAndTheClock(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	dir := t.TempDir()
	for claims, want := range map[string]struct {
		result Result
		found  string
	}{
		`{"exp":%d}`:            {Fine, "expires at 2026-01-02T04:04:05Z"},
		`{"exp":%d,"nbf":1}`:    {Fine, "expires at"},
		`{"x":%d}`:              {Fine, "it has no end"},
		`{"exp":1000,"y":%d}`:   {Wrong, "expired at 1970"},
		`{"nbf":%d,"z":"late"}`: {Wrong, "valid from 2026-01-02T04:04:05Z"},
	} {
		payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, claims, now.Add(time.Hour).Unix()))
		config := write(t, filepath.Join(dir, "kubeconfig"), fmt.Sprintf(`{"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],
			"users":[{"name":"u","user":{"token":"h.%s.s"}}],"contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x"}`, payload), 0o600)
		wantCheck(t, checkToken(config, now), want.result, want.found)
		wantCheck(t, checkKubeconfig(config), Fine, config)
	}
	wantCheck(t, checkToken(filepath.Join(dir, "none"), now), Wrong, "no such file")
	wantCheck(t, checkKubeconfig(filepath.Join(dir, "none")), Wrong, "no such file")
	wantCheck(t, checkKubeconfig(write(t, filepath.Join(dir, "invalid"), "[", 0o600)), Wrong, "invalid")
	open := write(t, filepath.Join(dir, "open"), `{"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"contexts":[{"name":"x","context":{"cluster":"c"}}],"current-context":"x"}`, 0o644)
	wantCheck(t, checkKubeconfig(open), Limited, "mode is 0644")
}

// If the agent or the API server answers, the other's failure stops no pod.
func TestOneSourceIsEnough(t *testing.T) {
	fine, wrong := Check{Name: CheckAgent, Result: Fine}, Check{Name: CheckAgent, Result: Wrong}
	api, noAPI := Check{Name: CheckAPIServer, Result: Fine}, Check{Name: CheckAPIServer, Result: Wrong}
	for _, c := range []struct {
		all  []Check
		want Result
	}{
		{[]Check{fine, api}, Fine}, {[]Check{fine, noAPI}, Limited}, {[]Check{wrong, api}, Limited}, {[]Check{wrong, noAPI}, Wrong}, {[]Check{noAPI}, Wrong},
	} {
		report := Report{Checks: redundant(c.all)}.concluded()
		if report.Result != c.want {
			t.Errorf("%+v: %s, want %s", c.all, report.Result, c.want)
		}
	}
}

// This process is a runtime as it should be; a kernel thread is none.
func TestTheRuntime(t *testing.T) {
	nettest.RequireNetns(t)
	r, err := findRuntime(os.Getpid())
	wantCheck(t, checkRuntime(r, err), Fine, "PATH "+os.Getenv("PATH"))
	r, err = findRuntime(1 << 30)
	wantCheck(t, checkRuntime(r, err), Unknown, "read process")
	wantCheck(t, checkRuntime(nil, nil), Limited, "no process is called containerd")
}
