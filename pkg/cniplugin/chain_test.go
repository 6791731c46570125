package cniplugin_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// The whole chain as a runtime has it: cnitool, bridge, host-local and detour, on a node of its own.
func TestCnitoolRunsTheChain(t *testing.T) {
	t.Parallel()
	a := newAttachment(t, meshedPod(), meshConfig)
	node := nettest.StartNamespace(t, "node")
	detour := map[string]any{"type": "detour"}
	for _, field := range []string{"mesh", "manifests", "stateDir", "logFile"} {
		detour[field] = a.conf[field]
	}
	bridge := map[string]any{"type": "bridge", "bridge": "cni0", "ipam": map[string]any{
		"type": "host-local", "dataDir": a.path("ipam"),
		"ranges": [][]map[string]string{{{"subnet": "10.88.0.0/24"}}, {{"subnet": "fd88::/64"}}}}}
	list, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "net", "plugins": []any{bridge, detour}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(a.path("conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	a.file("conf/10-net.conflist", string(list))

	cnitool := func(verb string) (string, error) {
		cmd := exec.Command(filepath.Join(binDir(t), "cnitool"), verb, "net", a.ns.Path())
		cmd.Env = append(os.Environ(), "CNI_PATH="+binDir(t), "NETCONFPATH="+a.path("conf"), "CNI_ARGS="+a.env["CNI_ARGS"])
		var out []byte
		err := node.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
		return string(out), err
	}
	for _, verb := range []string{"status", "add", "check"} {
		if out, err := cnitool(verb); err != nil {
			t.Fatalf("cnitool %s: %v: %s", verb, err, out)
		}
	}
	if len(a.rules(rules.IPv4)) == 0 || len(a.rules(rules.IPv6)) == 0 {
		t.Error("the pod is not programmed")
	}
	a.shell("iptables -t nat -F PROXY_OUTPUT")
	if out, err := cnitool("check"); err == nil || !strings.Contains(out, "rule 1 of PROXY_OUTPUT is missing") {
		t.Errorf("cnitool check: %v: %s", err, out)
	}
	if out, err := cnitool("gc"); err != nil {
		t.Fatalf("cnitool gc: %v: %s", err, out)
	}
	if out, err := cnitool("del"); err != nil {
		t.Fatalf("cnitool del: %v: %s", err, out)
	}
	a.untouched()
}
