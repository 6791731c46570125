package netconf

import (
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

func TestDefaults(t *testing.T) {
	conf, err := Parse([]byte(`{"mesh": "osm", "agentSocket": "/s"}`))
	if err != nil {
		t.Fatal(err)
	}
	for field, c := range map[string]struct{ got, want any }{
		"mesh":                    {conf.Dialect.Name, "osm"},
		"meshConfig":              {conf.Dialect.Config.String(), "MeshConfig osm-system/osm-mesh-config"},
		"excludeNamespaces":       {conf.ExcludeNamespaces, []string{"kube-system", "osm-system"}},
		"directInitContainers":    {conf.DirectInit, []string(nil)},
		"redirectAfterProxyStart": {conf.Gated, false},
		"backend":                 {conf.Backend, "auto"},
		"onError":                 {conf.AllowOnError, false},
		"timeout":                 {conf.Timeout, 10 * time.Second},
		"stateDir":                {conf.StateDir, "/run/detour"},
		"logFile":                 {conf.LogFile, ""},
		"logLevel":                {conf.LogLevel, slog.LevelInfo},
		"prevResult":              {conf.PrevResult, json.RawMessage(nil)},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s is %v, want %v", field, c.got, c.want)
		}
	}
}

func TestEveryFieldCounts(t *testing.T) {
	conf, err := Parse([]byte(`{"cniVersion": "1.1.0", "name": "net", "type": "detour", "prevResult": {"ips":[]}, "cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}],
		"cni.dev/attachments": [], "capabilities": {}, "ipam": {}, "dns": {}, "runtimeConfig": {}, "args": {},
		"mesh": "osm", "meshConfig": {"namespace": "mesh", "name": "config"}, "agentSocket": "/s", "kubeconfig": "/k", "proxy": {"uid": 4711},
		"excludeNamespaces": [], "directInitContainers": ["shop"], "redirectAfterProxyStart": true, "backend": "nftables", "onError": "allow",
		"timeout": "1m30s", "stateDir": "/state", "logFile": "/log", "logLevel": "debug"}`))
	if err != nil {
		t.Fatal(err)
	}
	for field, c := range map[string]struct{ got, want any }{
		"cniVersion":                {conf.CNIVersion, "1.1.0"},
		"name":                      {conf.Name, "net"},
		"prevResult":                {string(conf.PrevResult), `{"ips":[]}`},
		"cni.dev/valid-attachments": {conf.ValidAttachments, []types.GCAttachment{{ContainerID: "c", IfName: "eth0"}}},
		"meshConfig":                {conf.Dialect.Config.String(), "MeshConfig mesh/config"},
		"agentSocket":               {conf.AgentSocket, "/s"},
		"kubeconfig":                {conf.Kubeconfig, "/k"},
		"excludeNamespaces":         {conf.ExcludeNamespaces, []string{}},
		"directInitContainers":      {conf.DirectInit, []string{"shop"}},
		"redirectAfterProxyStart":   {conf.Gated, true},
		"backend":                   {conf.Backend, "nftables"},
		"onError":                   {conf.AllowOnError, true},
		"timeout":                   {conf.Timeout, 90 * time.Second},
		"stateDir":                  {conf.StateDir, "/state"},
		"logFile":                   {conf.LogFile, "/log"},
		"logLevel":                  {conf.LogLevel, slog.LevelDebug},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s is %v, want %v", field, c.got, c.want)
		}
	}
	if plain, _ := Parse([]byte(`{"mesh": "osm", "agentSocket": "/s"}`)); reflect.DeepEqual(conf.Dialect.Broadest(), plain.Dialect.Broadest()) {
		t.Error("proxy does not count")
	}
}

// DEL has to work with what is left of a net conf.
func TestAnInvalidNetConfIsUsedAsFarAsItGoes(t *testing.T) {
	for text, want := range map[string]string{
		`{"name": "net", "stateDir": "", "timeout": "x"}`:                         `mesh: "" is none of osm`,
		`{"name": "net", "mesh": 1, "prevResult": 1}`:                             "mesh: got a number, want a string",
		`{"name": "net", "mesh": "osm", "agentSocket": "/s", "prevResult": "x"}`:  "prevResult: want an object",
		`{"name": "net", "mesh": "osm", "agentSocket": "/s", "proxy": {"x": 1}}`:  "x: there is no such field",
		`{"name": "net", "cni.dev/x": 1, "extra": 1, "timeout": "0s"}`:            "extra: there is no such field",
		`{"name": "net", "redirectAfterProxyStart": true, "backend": "iptables"}`: "redirectAfterProxyStart: it takes nftables",
	} {
		conf, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got error %v, want %s", text, err, want)
		}
		if conf.Name != "net" || conf.StateDir != DefaultStateDir || conf.Timeout != DefaultTimeout {
			t.Errorf("%s: got %+v", text, conf)
		}
	}
}

func TestEntry(t *testing.T) {
	for data, want := range map[string]string{
		`{"mesh": "osm"}`: `{"mesh":"osm"}`,
		`{"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "bridge"}, {"type": "detour", "name": "x", "mesh": "osm"}]}`: `{"cniVersion":"1.0.0","mesh":"osm","name":"n","type":"detour"}`,
		`{"plugins": [{"type": "detour"}]}`: `{"type":"detour"}`,
	} {
		entry, err := Entry([]byte(data))
		got, _ := json.Marshal(entry)
		if err != nil || string(got) != want {
			t.Errorf("%s: got %s, %v", data, got, err)
		}
	}
	for data, want := range map[string]string{
		`null`:                              "it is not a JSON object",
		`[]`:                                "it is not a JSON object",
		`mesh: osm`:                         "it is not a JSON object",
		`{"plugins": {}}`:                   "plugins: ",
		`{"plugins": null}`:                 "plugins: 0 entries are of type detour, want one",
		`{"plugins": [null]}`:               "plugins: 0 entries are of type detour, want one",
		`{"plugins": [{"type": "bridge"}]}`: "plugins: 0 entries are of type detour, want one",
		`{"plugins": [{"type": "detour", "mesh": "osm"}, {"type": "detour", "mesh": "istio"}]}`: "plugins: 2 entries are of type detour, want one",
	} {
		if entry, err := Entry([]byte(data)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want %s", data, entry, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"cniVersion":"1.1.0","name":"net","type":"detour","mesh":"osm","kubeconfig":"/etc/kubeconfig"}`,
		`{"mesh":"osm","manifests":"m","meshConfig":{"namespace":"a","name":"b"},"excludeNamespaces":[],"timeout":"1s","onError":"allow","logLevel":"debug"}`,
		`{"mesh":"osm","manifests":"m","prevResult":{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/8"}]}}`,
		`{"name":"net","plugins":[{"type":"detour","mesh":"osm","agentSocket":"/s"}]}`,
		`{"mesh":"osm","agentSocket":"/s","prevResult":null}`, `{"mesh":1}`, `{"timeout":"-1s"}`, `{"meshConfig":{"name":"../x"}}`, `{"unknown":null}`, `{"cni.dev/attachments":[]}`, `[]`, `null`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := Parse(data)
		if conf.Timeout <= 0 || conf.StateDir == "" {
			t.Errorf("timeout %s, state folder %q: DEL could not work", conf.Timeout, conf.StateDir)
		}
		if p := conf.PrevResult; err == nil && p != nil && p[0] != '{' {
			t.Errorf("prevResult %s", p)
		}
		var cniErr *types.Error
		if err != nil && (!errors.As(err, &cniErr) || cniErr.Code != types.ErrInvalidNetworkConfig) {
			t.Errorf("%v is no CNI error with code 7", err)
		}
		if err == nil && (conf.Dialect.Name == "" || (conf.Kubeconfig == "" && conf.AgentSocket == "") == (conf.Manifests == "")) {
			t.Errorf("accepted %+v", conf)
		}
		if entry, err := Entry(data); (entry == nil) == (err == nil) {
			t.Errorf("entry %v, %v", entry, err)
		}
	})
}
