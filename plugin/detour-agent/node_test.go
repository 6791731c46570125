package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const bridge = `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}`

// node makes a node's folders, with a network.
func node(t *testing.T) folders {
	t.Helper()
	root := t.TempDir()
	put(t, filepath.Join(root, "net.d/10-net.conflist"), bridge)
	put(t, filepath.Join(root, "bin/bridge"), "somebody else's")
	return folders{bin: filepath.Join(root, "bin"), conf: filepath.Join(root, "net.d"), hostConf: "/etc/cni/net.d"}
}

// files are the node's, by their names.
func (f folders) files(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, dir := range []string{f.bin, f.conf} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if errors.Is(err, fs.ErrNotExist) {
				continue // a temporary file, in its place by now
			}
			if err != nil {
				t.Fatal(err)
			}
			found[e.Name()] = string(content)
		}
	}
	return found
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestUninstallRestoresTheNode(t *testing.T) {
	t.Parallel()
	f := node(t)
	before := f.files(t)
	put(t, filepath.Join(f.bin, "detour"), "the plugin")
	put(t, filepath.Join(f.conf, "detour-token"), "the token")
	for range 2 { // the second time there is nothing to do
		var stderr strings.Builder
		if code := run([]string{"uninstall", "--cni-bin-dir=" + f.bin, "--cni-conf-dir=" + f.conf}, &stderr); code != 0 {
			t.Fatalf("uninstall: exit code %d: %s", code, stderr.String())
		}
		if left := f.files(t); !maps.Equal(left, before) {
			t.Errorf("after uninstall there is %q, and before there was %q", left, before)
		}
	}
}

func TestUninstallCanWaitUntilItIsToldToStop(t *testing.T) {
	t.Parallel()
	f := node(t)
	put(t, filepath.Join(f.bin, "detour"), "the plugin")
	ctx, stop := context.WithCancel(t.Context())
	c := uninstallCommand()
	c.SetArgs([]string{"--wait", "--cni-bin-dir=" + f.bin, "--cni-conf-dir=" + f.conf})
	ended := make(chan error, 1)
	go func() { ended <- c.ExecuteContext(ctx) }()
	eventually(t, "uninstalled", func() bool { return f.files(t)["detour"] == "" })
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
