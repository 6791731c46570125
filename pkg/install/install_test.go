package install

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestInstall(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	r := w.reconcile()
	if got := w.network(); got != "net: bridge portmap detour" {
		t.Errorf("the runtime loads %s", got)
	}
	if r.Network != "net" || r.Conflist != w.path("10-x.conflist") {
		t.Errorf("got network %s in %s", r.Network, r.Conflist)
	}
	var parts []Part
	for _, c := range r.Changes {
		parts = append(parts, c.Part)
	}
	if want := []Part{PartToken, PartKubeconfig, PartBinary, PartConflist}; !slices.Equal(parts, want) {
		t.Errorf("installed %v, want %v", parts, want)
	}
	for path, mode := range map[string]os.FileMode{
		w.path(TokenName): 0o600, w.path(KubeconfigName): 0o600, w.path("10-x.conflist"): 0o644, filepath.Join(w.BinDir, "detour"): 0o755,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
	}
	diff(t, contents(t, w.BinDir), map[string]string{"detour": "\x7fELF the plugin"})
	if got := contents(t, w.ConfDir)[TokenName]; got != "token 1" {
		t.Errorf("the token is %q", got)
	}
}

// The conf as client-go reads it is pkg/kube's matter; here are the fields that it needs.
func TestKubeconfig(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	w.reconcile()
	text := contents(t, w.ConfDir)[KubeconfigName]
	var conf struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     string `json:"certificate-authority-data"`
			}
		}
		Users []struct{ User map[string]string }
	}
	if err := yaml.Unmarshal([]byte(text), &conf); err != nil {
		t.Fatal(err)
	}
	ca, err := base64.StdEncoding.DecodeString(conf.Clusters[0].Cluster.CA)
	if err != nil || string(ca) != "the authority" || conf.Clusters[0].Cluster.Server != "https://10.0.0.1:443" ||
		conf.Users[0].User["tokenFile"] != "/etc/cni/net.d/detour-token" {
		t.Errorf("got %+v from\n%s", conf, text)
	}
	if strings.Contains(text, "token 1") {
		t.Error("the token is in the kubeconfig")
	}
}

// Each of these is put right by the next Reconcile, with that reason, and nothing else is touched.
func TestWhatIsWrongIsPutRight(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	plugin := filepath.Join(w.BinDir, "detour")
	for _, c := range []struct {
		name, reason string
		part         Part
		spoil        func() error
	}{
		{"token rotated", "wrong content", PartToken, func() error { return os.WriteFile(w.Kubeconfig.TokenFile, []byte("token 2"), 0o600) }},
		{"token readable", "wrong mode -rw-r--r--", PartToken, func() error { return os.Chmod(w.path(TokenName), 0o644) }},
		{"token gone", "missing", PartToken, func() error { return os.Remove(w.path(TokenName)) }},
		{"token is a link", "wrong mode L", PartToken, func() error {
			return errors.Join(os.Remove(w.path(TokenName)), os.Symlink(w.Kubeconfig.TokenFile, w.path(TokenName)))
		}},
		{"authority rotated", "wrong content", PartKubeconfig, func() error { return os.WriteFile(w.Kubeconfig.CAFile, []byte("another"), 0o600) }},
		{"kubeconfig gone", "missing", PartKubeconfig, func() error { return os.Remove(w.path(KubeconfigName)) }},
		{"binary gone", "missing", PartBinary, func() error { return os.Remove(plugin) }},
		{"binary of the same size", "another version", PartBinary, func() error { return os.WriteFile(plugin, []byte("\x7fELF the plugIn"), 0o755) }},
		{"binary not executable", "wrong mode -rw-r--r--", PartBinary, func() error { return os.Chmod(plugin, 0o644) }},
		{"image upgraded", "another version", PartBinary, func() error { return os.WriteFile(w.Plugin, []byte("\x7fELF the next plugin"), 0o755) }},
		{"entry gone", "entry missing", PartConflist, func() error { return os.WriteFile(w.path("10-x.conflist"), []byte(bridge), 0o644) }},
		{"another network first", "entry missing", PartConflist, func() error { return os.WriteFile(w.path("05-y.conflist"), []byte(bridge), 0o644) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := w.installer()
			if _, err := i.Reconcile(); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(); err != nil {
				t.Fatal(err)
			}
			r, err := i.Reconcile()
			if err != nil || len(r.Changes) != 1 || r.Changes[0].Part != c.part || !strings.HasPrefix(r.Changes[0].Reason, c.reason) {
				t.Errorf("got %+v, %v", r.Changes, err)
			}
			if r := w.reconcile(); len(r.Changes) > 0 {
				t.Errorf("then %+v", r.Changes)
			}
			if got := w.network(); got != "net: bridge portmap detour" {
				t.Errorf("the runtime loads %s", got)
			}
		})
	}
}

// A file that is compared once is not read again, but for as long as it may change unseen.
func TestBinaryIsComparedOnce(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	i := w.installer()
	if _, err := i.Reconcile(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for i.compared == [2]identity{} {
		if time.Now().After(deadline) {
			t.Fatal("it is never remembered")
		}
		time.Sleep(50 * time.Millisecond)
		if _, err := i.Reconcile(); err != nil {
			t.Fatal(err)
		}
	}
	plugin := filepath.Join(w.BinDir, "detour")
	info, err := os.Stat(plugin)
	if err != nil {
		t.Fatal(err)
	}
	put(t, plugin, "\x7fELF the plugIn")
	if err := os.Chtimes(plugin, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if r, err := i.Reconcile(); err != nil || len(r.Changes) != 1 {
		t.Errorf("a change in place is not seen: %v, %v", r, err)
	}
}

func TestARunningBinaryIsReplaced(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	w.reconcile()
	running, err := os.Open(filepath.Join(w.BinDir, "detour"))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	put(t, w.Plugin, "\x7fELF the next plugin")
	w.reconcile()
	text := make([]byte, 100)
	if n, _ := running.Read(text); string(text[:n]) != "\x7fELF the plugin" {
		t.Errorf("whoever runs the old one has %q", text[:n])
	}
}

func TestWithoutNetworkAllElseIsThere(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": `{"name": "x"`, "README": bridge})
	_, err := w.installer().Reconcile()
	if !errors.Is(err, ErrNoNetwork) {
		t.Fatalf("got %v", err)
	}
	mustContain(t, err.Error(), "10-x.conflist", "unexpected end of JSON input")
	diff(t, contents(t, w.BinDir), map[string]string{"detour": "\x7fELF the plugin"})
	put(t, w.path("10-x.conflist"), bridge)
	if r := w.reconcile(); len(r.Changes) != 1 {
		t.Errorf("then %v", r.Changes)
	}
}

func TestNoCredentialWithoutKubeconfig(t *testing.T) {
	for _, networks := range []map[string]string{{"10-x.conflist": bridge}, nil} {
		w := newWorld(t, networks)
		_, _ = w.installer().Reconcile()
		if _, ok := contents(t, w.ConfDir)[TokenName]; !ok {
			t.Fatal("there is no token to be removed")
		}
		put(t, w.path(".detour-123.tmp"), "half a token")
		w.Kubeconfig = nil
		for range 2 {
			_, err := w.installer().Reconcile()
			if (err != nil) != (networks == nil) {
				t.Fatal(err)
			}
			diff(t, contents(t, w.ConfDir), w.files())
			if files := w.files(); len(files) != len(networks) {
				t.Errorf("there are %v", files)
			}
		}
	}
}

// The list is not touched before the plugin can run; once it can, a part that fails does not keep the others back.
func TestOrder(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conflist": bridge})
	fails := func(reason string) {
		t.Helper()
		_, err := w.installer().Reconcile()
		if err == nil {
			t.Fatal("it works")
		}
		mustContain(t, err.Error(), reason)
	}
	put(t, w.Kubeconfig.TokenFile, "\n")
	fails("token is empty")
	w.wantFiles(map[string]string{"10-x.conflist": bridge})
	diff(t, contents(t, w.BinDir), nil)

	put(t, w.Kubeconfig.TokenFile, "token 1")
	plugin := w.Plugin
	w.Plugin += "-missing"
	fails("install binary")
	w.wantFiles(map[string]string{"10-x.conflist": bridge})

	w.Plugin = plugin
	w.reconcile()
	put(t, w.path("10-x.conflist"), bridge)
	put(t, w.Kubeconfig.TokenFile, "")
	w.Plugin += "-missing"
	fails("token is empty")
	if got := w.network(); got != "net: bridge portmap detour" {
		t.Errorf("the runtime loads %s", got)
	}
}

func TestModeAndOwnerAreKept(t *testing.T) {
	nettest.RequireNetns(t) // files of others need root, as namespaces do, and CI has it
	for name, text := range map[string]string{"10-x.conflist": bridge, "10-x.conf": single} {
		w := newWorld(t, map[string]string{name: text})
		if err := errors.Join(os.Chmod(w.path(name), 0o640), os.Chown(w.path(name), 12, 34)); err != nil {
			t.Fatal(err)
		}
		w.reconcile()
		for file := range w.files() {
			info, err := os.Stat(w.path(file))
			if err != nil {
				t.Fatal(err)
			}
			if got := ownedBy(info); got != (owned{0o640, 12, 34}) {
				t.Errorf("%s has %+v", file, got)
			}
		}
	}
}

func TestLinks(t *testing.T) {
	w := newWorld(t, map[string]string{"x.cni": bridge, "00-nowhere.conflist": ""})
	if err := errors.Join(os.Remove(w.path("00-nowhere.conflist")), os.Symlink("gone", w.path("00-nowhere.conflist")),
		os.Symlink("x.cni", w.path("10-x.conflist"))); err != nil {
		t.Fatal(err)
	}
	w.reconcile()
	if to, err := os.Readlink(w.path("10-x.conflist")); err != nil || to != "x.cni" {
		t.Errorf("the link leads to %s, %v", to, err)
	}
	text, err := os.ReadFile(w.path("x.cni"))
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, string(text), `"detour"`)
	w.uninstall()
	if text, err := os.ReadFile(w.path("x.cni")); err != nil || string(text) != bridge {
		t.Errorf("uninstalled, it is %s, %v", text, err)
	}
	// what the host sees there, the agent can't know
	if err := os.Symlink("/etc/other/x.conflist", w.path("05-x.conflist")); err != nil {
		t.Fatal(err)
	}
	_, err = w.installer().Reconcile()
	if err == nil || errors.Is(err, ErrNoNetwork) {
		t.Fatalf("got %v", err)
	}
	mustContain(t, err.Error(), "/etc/other/x.conflist")
}

// The list that is made of a .conf follows the .conf when its owner writes it anew.
func TestConfIsRewritten(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conf": single})
	w.reconcile()
	next := strings.Replace(single, `"bridge"`, `"ptp"`, 1)
	put(t, w.path("10-x.conf"), next)
	w.reconcile()
	if got := w.network(); got != "net: ptp detour" {
		t.Errorf("the runtime loads %s", got)
	}
	if files := w.files(); len(files) != 2 || files["10-x.conf"] != next {
		t.Errorf("there are %v", files)
	}
	w.uninstall()
	w.wantFiles(map[string]string{"10-x.conf": next})
}

// And when its owner removes it, or another network comes before it, the list goes.
func TestConfIsNotTheRuntimesAnyMore(t *testing.T) {
	for _, c := range []struct {
		name, network string
		stays         bool
		change        func(w *world)
	}{
		{"invalid for a while", "", true, func(w *world) { put(w.tb, w.path("10-x.conf"), "{}") }},
		{"removed", "", false, func(w *world) { w.remove("10-x.conf") }},
		{"another list comes first", "net: bridge portmap detour", false, func(w *world) { put(w.tb, w.path("05-y.conflist"), bridge) }},
		{"another .conf comes first", "net: bridge detour", false, func(w *world) { put(w.tb, w.path("05-y.conf"), single) }},
		{"a list takes its place", "net: bridge portmap detour", false, func(w *world) {
			w.remove("10-x.conf")
			put(w.tb, w.path("10-x.conflist"), bridge)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, map[string]string{"10-x.conf": single})
			w.reconcile()
			c.change(w)
			if _, err := w.installer().Reconcile(); (c.network == "") != errors.Is(err, ErrNoNetwork) {
				t.Errorf("got %v", err)
			}
			if files := w.files(); (files["10-x-made-by-detour.conflist"] != "") != c.stays {
				t.Errorf("there are %v", files)
			}
			if c.network != "" && w.network() != c.network {
				t.Errorf("the runtime loads %s, want %s", w.network(), c.network)
			}
		})
	}
}

// What another program adds to the list that we have made stays there while the file says the same.
func TestAnotherPluginBehindTheListOfAConf(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conf": single})
	w.reconcile()
	const made = "10-x-made-by-detour.conflist"
	third := strings.Replace(w.files()[made], "\n  ]", `,{"type": "third"}]`, 1)
	put(t, w.path(made), third)
	w.reconcile()
	if got := w.files()[made]; got != third {
		t.Errorf("the list is %s, want %s", got, third)
	}
	w.Entry = json.RawMessage(`{"type": "detour", "mesh": "istio"}`)
	w.reconcile()
	if got := w.network(); got != "net: bridge detour third" {
		t.Errorf("the runtime loads %s", got)
	}
}

// A list that only sounds like ours is the runtime's as any other.
func TestAUsersListMayBeNamedAfterDetour(t *testing.T) {
	w := newWorld(t, map[string]string{"10-x.conf": single, "10-x-detour.conflist": bridge})
	w.reconcile()
	if files := w.files(); len(files) != 2 || w.network() != "net: bridge portmap detour" {
		t.Errorf("the runtime loads %s of %v", w.network(), files)
	}
}

// No other network comes between.
func TestConfWithAFollower(t *testing.T) {
	const other = `{"cniVersion": "1.0.0", "name": "other", "type": "ptp"}`
	for _, follower := range []string{"10-x.conf.d.conf", "10-x.conf-d.conf", "10-x.json"} {
		w := newWorld(t, map[string]string{"10-x.conf": single, follower: other})
		w.reconcile()
		if got := w.network(); got != "net: bridge detour" {
			t.Errorf("beside %s the runtime loads %s", follower, got)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	for reason, spoil := range map[string]func(*Config){
		"type":             func(c *Config) { c.Entry = json.RawMessage(`{}`) },
		"unexpected end":   func(c *Config) { c.Entry = json.RawMessage(`{"type"`) },
		"name of a plugin": func(c *Config) { c.Entry = json.RawMessage(`{"type": "../detour"}`) },
		"folders":          func(c *Config) { c.BinDir = "" },
		"kubeconfig":       func(c *Config) { c.Kubeconfig = &Kubeconfig{} },
	} {
		w := newWorld(t, nil)
		spoil(&w.Config)
		_, err := New(w.Config)
		if err == nil {
			t.Errorf("%s: it is accepted", reason)
			continue
		}
		mustContain(t, err.Error(), reason)
	}
}
