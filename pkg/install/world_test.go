package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

const (
	ourEntry = `{"type": "detour", "mesh": "osm", "meshConfig": {"namespace": "osm-system"}, "kubeconfig": "/etc/cni/net.d/detour-kubeconfig"}`
	bridge   = `{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}`
	single   = `{"cniVersion": "1.0.0", "name": "net", "type": "bridge"}`
)

// world is a host and what the agent's pod has.
type world struct {
	tb testing.TB
	Config
}

// at makes a world in the folder, with whatever is there already.
func at(root string) Config {
	return Config{
		Plugin:   filepath.Join(root, "image/detour"),
		BinDir:   filepath.Join(root, "bin"),
		ConfDir:  filepath.Join(root, "net.d"),
		StateDir: filepath.Join(root, "state"),
		CacheDir: filepath.Join(root, "cache"),
		Entry:    json.RawMessage(ourEntry),
		Kubeconfig: &Kubeconfig{
			HostDir: "/etc/cni/net.d", Server: "https://10.0.0.1:443",
			CAFile: filepath.Join(root, "pod/ca.crt"), TokenFile: filepath.Join(root, "pod/token"),
		},
	}
}

// newWorld makes a world in which the runtime has these files.
func newWorld(tb testing.TB, files map[string]string) *world {
	tb.Helper()
	w := &world{tb, at(tb.TempDir())}
	for _, dir := range []string{filepath.Dir(w.Plugin), w.BinDir, w.ConfDir, filepath.Dir(w.Kubeconfig.TokenFile)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	put(tb, w.Plugin, "\x7fELF the plugin")
	put(tb, w.Kubeconfig.TokenFile, "token 1")
	put(tb, w.Kubeconfig.CAFile, "the authority")
	for name, text := range files {
		put(tb, w.path(name), text)
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.ConfDir, name) }

func (w *world) installer() *Installer {
	w.tb.Helper()
	i, err := New(w.Config)
	if err != nil {
		w.tb.Fatal(err)
	}
	return i
}

// reconcile must succeed.
func (w *world) reconcile() Result {
	w.tb.Helper()
	r, err := w.installer().Reconcile()
	if err != nil {
		w.tb.Fatal(err)
	}
	return r
}

func (w *world) uninstall() {
	w.tb.Helper()
	if pods, err := w.installer().Uninstall(); err != nil || len(pods) > 0 {
		w.tb.Fatalf("uninstall: the binary stays for %q, %v", pods, err)
	}
}

// files are those of the runtime's folder of configurations, without the credentials.
func (w *world) files() map[string]string {
	w.tb.Helper()
	files := contents(w.tb, w.ConfDir)
	delete(files, TokenName)
	delete(files, KubeconfigName)
	return files
}

func (w *world) wantFiles(want map[string]string) {
	w.tb.Helper()
	diff(w.tb, w.files(), want)
}

func diff(tb testing.TB, got, want map[string]string) {
	tb.Helper()
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if text, ok := want[name]; !ok {
			tb.Errorf("there is a file %s:\n%s", name, got[name])
		} else if got[name] != text {
			tb.Errorf("%s is\n%q\nwant\n%q", name, got[name], text)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			tb.Errorf("there is no file %s", name)
		}
	}
}

// network is the one that the runtime loads: "name: type type".
func (w *world) network() string {
	w.tb.Helper()
	n, err := runtimeNetwork(w.ConfDir)
	if err != nil {
		w.tb.Error(err)
	}
	return n
}

// runtimeNetwork loads the first network as containerd does, for which a first file that is invalid is an error.
func runtimeNetwork(dir string) (string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no network: %w", err)
	}
	slices.Sort(files)
	var list *libcni.NetworkConfigList
	if strings.HasSuffix(files[0], ".conflist") {
		list, err = libcni.ConfListFromFile(files[0])
	} else {
		var conf *libcni.NetworkConfig
		if conf, err = libcni.ConfFromFile(files[0]); err == nil { //nolint:staticcheck // deprecated, but what the runtimes call
			list, err = libcni.ConfListFromConf(conf) //nolint:staticcheck
		}
	}
	if err != nil {
		return "", fmt.Errorf("load %s: %w", files[0], err)
	}
	out := list.Name + ":"
	for _, p := range list.Plugins {
		out += " " + p.Network.Type
	}
	// what the runtimes do for all files at once must find the same
	byName, err := libcni.LoadNetworkConf(dir, list.Name)
	if err == nil && len(byName.Plugins) == 0 {
		err = fmt.Errorf("network %s has no plugins", list.Name)
	}
	return out, err
}

func put(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		tb.Fatal(err)
	}
}

func contents(tb testing.TB, dir string) map[string]string {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			tb.Fatal(err)
		}
		files[e.Name()] = string(text)
	}
	return files
}

// stamps tell whether any file was touched, or written anew with the same content.
func stamps(tb testing.TB, dirs ...string) map[string]string {
	tb.Helper()
	found := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range entries {
			info, err := os.Lstat(filepath.Join(dir, e.Name()))
			if err != nil {
				tb.Fatal(err)
			}
			found[filepath.Join(dir, e.Name())] = fmt.Sprintf("%+v", identify(info))
		}
		info, err := os.Stat(dir)
		if err != nil {
			tb.Fatal(err)
		}
		found[dir] = info.ModTime().String() // a file that came and went changes it
	}
	return found
}

func mustContain(tb testing.TB, text string, parts ...string) {
	tb.Helper()
	for _, p := range parts {
		if !bytes.Contains([]byte(text), []byte(p)) {
			tb.Errorf("%q does not contain %q", text, p)
		}
	}
}
