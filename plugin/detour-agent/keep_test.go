package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/install"
	"github.com/detour-cni/detour/pkg/mesh"
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

// newKeeper returns a keeper for the node. Its log goes to the writer.
func newKeeper(t *testing.T, f folders, log io.Writer) *keeper {
	t.Helper()
	image := t.TempDir()
	o := runOptions{
		folders: f, stateDir: "/run/detour", apiFallback: true, apiServer: "https://10.96.0.1:443",
		config:    put(t, filepath.Join(image, "netconf.json"), `{"mesh": "osm"}`),
		plugin:    put(t, filepath.Join(image, "detour"), "the plugin"),
		tokenFile: put(t, filepath.Join(image, "token"), "the token"),
		caFile:    put(t, filepath.Join(image, "ca.crt"), "the authority"),
	}
	entry, err := o.entry()
	if err != nil {
		t.Fatal(err)
	}
	dialect, _ := mesh.Find("osm")
	a, err := agent.New(agent.Config{
		Node: "node", Options: decision.Options{Dialect: dialect}, StateDir: image,
		Kubeconfig: put(t, filepath.Join(image, "kubeconfig"), "{clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{log: slog.New(slog.NewTextHandler(log, nil)), options: o, entry: entry, agent: a, versions: make(chan string, 1), said: map[string]time.Time{}}
}

// startKeeper keeps detour installed on the node until stop is called, which waits for its end.
func startKeeper(t *testing.T, f folders) (k *keeper, stop func()) {
	t.Helper()
	k = newKeeper(t, f, t.Output())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.run(ctx) }()
	return k, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestWhatIsInstalledStaysUntilItIsUninstalled(t *testing.T) {
	t.Parallel()
	f := node(t)
	before := f.files(t)
	k, stop := startKeeper(t, f)
	eventually(t, "installed", func() bool { ok, _ := k.installed(); return ok })
	k.found("v1alpha1")
	eventually(t, "the version is in the entry", func() bool {
		return strings.Contains(f.files(t)["10-net.conflist"], `"versions":["v1alpha1"]`)
	})
	stop()
	after := f.files(t)
	for name, want := range map[string]string{
		"10-net.conflist": `"type":"detour"`, "detour": "the plugin", "detour-token": "the token", "detour-kubeconfig": "https://10.96.0.1:443",
	} {
		if !strings.Contains(after[name], want) {
			t.Errorf("after the agent's end %s is %q, want %q in it", name, after[name], want)
		}
	}

	for range 2 { // the second time there is nothing to do
		var stderr strings.Builder
		if code := run([]string{"uninstall", "--cni-bin-dir=" + f.bin, "--cni-conf-dir=" + f.conf}, &stderr); code != 0 {
			t.Fatalf("uninstall: exit code %d: %s", code, stderr.String())
		}
		if left := f.files(t); len(left) != len(before) || left["10-net.conflist"] != bridge {
			t.Errorf("after uninstall there is %q, and before there was %q", left, before)
		}
	}
}

func TestReadinessKnowsWhatIsMissing(t *testing.T) {
	t.Parallel()
	if ok, why := new(keeper).installed(); ok || why != "the first look at the host is not done yet" {
		t.Errorf("at first: %t, %q", ok, why)
	}
	f := node(t)
	if err := os.Remove(filepath.Join(f.conf, "10-net.conflist")); err != nil {
		t.Fatal(err)
	}
	k, stop := startKeeper(t, f)
	defer stop()
	eventually(t, "the network is missing", func() bool {
		ok, why := k.installed()
		return !ok && strings.Contains(why, "no valid network configuration")
	})
	put(t, filepath.Join(f.conf, "10-net.conflist"), bridge)
	eventually(t, "installed", func() bool { ok, _ := k.installed(); return ok })
}

// Somebody else who changes the list five times a second is named once a minute, with how often it was; anything else at once.
func TestAFightIsInTheLogOnceAMinute(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	k := newKeeper(t, node(t), &log)
	conflict := &install.ConflictError{Part: install.PartConflist, File: "x.conflist"}
	synctest.Test(t, func(*testing.T) {
		for n := 1; n <= 5*150; n++ {
			k.state(install.State{Result: install.Result{Changes: []install.Change{
				{Part: install.PartConflist, File: "x.conflist", Reason: "entry missing or different", Rival: n},
			}}})
			k.state(install.State{Err: conflict})
			time.Sleep(200 * time.Millisecond)
		}
		k.state(install.State{Err: install.ErrNoNetwork})
	})
	for text, want := range map[string]int{
		"somebody else had changed what is installed": 3, "times=1\n": 1, "times=301\n": 1, "times=601\n": 1,
		"somebody else keeps changing it": 3, install.ErrNoNetwork.Error(): 1, "level": 7,
	} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("%q is there %d times, want %d times", text, got, want)
		}
	}
	if ok, why := k.installed(); ok || why != install.ErrNoNetwork.Error() {
		t.Errorf("readiness: %t, %q", ok, why)
	}
}

func TestOfTwoVersionsTheNewerCounts(t *testing.T) {
	t.Parallel()
	k := &keeper{versions: make(chan string, 1)}
	k.found("v1")
	k.found("v2")
	if got := <-k.versions; got != "v2" || len(k.versions) != 0 {
		t.Errorf("got %s", got)
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
