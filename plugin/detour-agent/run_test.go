package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// put writes a file and returns its path.
func put(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := func(name, content string) string { return "--config=" + put(t, filepath.Join(dir, name), content) }
	good := config("good", `{"mesh": "osm"}`)
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"start"}, `unknown command "start" for "detour-agent"`},
		{[]string{"run", "--nonsense"}, "unknown flag: --nonsense"},
		{[]string{"run", "now"}, `unknown command "now" for "detour-agent run"`},
		{[]string{"run", "--api-fallback=perhaps"}, `invalid argument "perhaps" for "--api-fallback" flag`},
		{[]string{"run", "--config=" + dir + "/none"}, "read the plugin's configuration: open " + dir + "/none"},
		{[]string{"run", config("list", "[]")}, dir + "/list: it is not a JSON object: "},
		{[]string{"run", config("null", "null")}, dir + "/null: it is not a JSON object"},
		{[]string{"run", config("mesh", `{"mesh": "none"}`)}, "network configuration of detour: mesh: "},
		{[]string{"run", config("field", `{"mesh": "osm", "colour": "red"}`)}, "colour: there is no such field"},
		{[]string{"run", config("type", `{"mesh": "osm", "timeout": 5}`)}, "timeout: got a number, want a string"},
		{[]string{"run", good, "--repair=never"}, `repair: "never" is none of report, evict, in-place`},
		{[]string{"run", good}, `"" is not a node's name`}, // it is NODE_NAME
		{[]string{"uninstall", "--cni-conf-dir="}, "folders of plugins and network configurations: both are needed"},
		{[]string{"uninstall", "--cni-conf-dir=" + dir + "/none", "--cni-bin-dir=" + dir}, "uninstall conflist: open " + dir + "/none"},
		{[]string{"uninstall", "--config=x"}, "unknown flag: --config"},
	}
	for _, tt := range tests {
		var stderr strings.Builder
		code := run(tt.args, &stderr)
		if said := stderr.String(); code != 1 || !strings.HasPrefix(said, "detour-agent: ") || !strings.Contains(said, tt.want) {
			t.Errorf("%q: exit code %d and %q, want 1 and %q", tt.args, code, said, tt.want)
		}
	}
}

func TestTheEntryIsTheUsersAndWhatTheAgentKnows(t *testing.T) {
	t.Parallel()
	o := runOptions{
		folders:  folders{hostConf: "/etc/cni/net.d"},
		config:   put(t, filepath.Join(t.TempDir(), "netconf.json"), `{"mesh": "osm", "timeout": "5s", "stateDir": "/elsewhere"}`),
		stateDir: "/run/detour",
	}
	want := `{"type": "detour", "mesh": "osm", "timeout": "5s", "stateDir": "/run/detour", "agentSocket": "/run/detour/agent.sock"}`
	wantEntry(t, o, "", want)
	o.apiFallback = true
	want = strings.Replace(want, "{", `{"kubeconfig": "/etc/cni/net.d/detour-kubeconfig", `, 1)
	wantEntry(t, o, "", want)
	wantEntry(t, o, "v1alpha2", strings.Replace(want, "{", `{"proxy": {"meshConfig": {"versions": ["v1alpha2"]}}, `, 1))

	// What the user overrides of the proxy stays, but for the versions, of which the one that is served is known.
	put(t, o.config, `{"mesh": "osm", "proxy": {"uid": 1600, "meshConfig": {"kind": "Mesh", "versions": ["v1", "v2"]}}}`)
	o = runOptions{config: o.config, stateDir: o.stateDir}
	const common = `{"type": "detour", "mesh": "osm", "stateDir": "/run/detour", "agentSocket": "/run/detour/agent.sock", "proxy": {"uid": 1600, "meshConfig": {"kind": "Mesh", "versions": `
	wantEntry(t, o, "", common+`["v1", "v2"]}}}`)
	wantEntry(t, o, "v2", common+`["v2"]}}}`)
}

func wantEntry(t *testing.T, o runOptions, version, want string) {
	t.Helper()
	n, err := o.netConf()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Parse(); err != nil {
		t.Errorf("the plugin would refuse the entry: %v", err)
	}
	text, err := n.WithVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	var gotValue, wantValue any
	if err := json.Unmarshal(text, &gotValue); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &wantValue); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(gotValue, wantValue) {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestTheAPIServerIsTheOneThatContainersAreToldOf(t *testing.T) {
	for host, want := range map[string]string{"10.96.0.1": "https://10.96.0.1:443", "fd00::1": "https://[fd00::1]:443", "": ""} {
		t.Setenv("KUBERNETES_SERVICE_HOST", host)
		t.Setenv("KUBERNETES_SERVICE_PORT", "443")
		if got := inClusterServer(); got != want {
			t.Errorf("%q: got %q, want %q", host, got, want)
		}
	}
}

// The repair decides as the plugin does: every option of the net conf reaches the agent.
func TestTheAgentHasTheNetConfsOptions(t *testing.T) {
	t.Parallel()
	o := runOptions{stateDir: "/run/detour", repair: "in-place", config: put(t, filepath.Join(t.TempDir(), "netconf.json"), `{
		"mesh": "osm", "redirectAfterProxyStart": true, "directInitContainers": ["shop"], "excludeNamespaces": ["other"], "proxy": {"uid": 1600}}`)}
	n, err := o.netConf()
	if err != nil {
		t.Fatal(err)
	}
	conf, err := o.agentConfig(n)
	if err != nil {
		t.Fatal(err)
	}
	if got := conf.Options; !got.Gated || !slices.Equal(got.DirectInit, []string{"shop"}) || !slices.Equal(got.ExcludeNamespaces, []string{"other"}) {
		t.Errorf("got %+v", got)
	}
}
