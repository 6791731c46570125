package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// netConf is what a runtime gives a chained plugin.
func netConf(name string, addresses []string) object {
	ips := []any{}
	for _, a := range addresses {
		ips = append(ips, object{"address": a})
	}
	return object{
		"cniVersion": "1.0.0", "name": "net", "type": name,
		"prevResult": object{"cniVersion": "1.0.0", "ips": ips, "dns": object{}},
	}
}

// add runs a plugin's ADD of the pod for a namespace, as a runtime does.
func add(t *testing.T, plugin string, conf object, ns *nettest.Namespace) {
	t.Helper()
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, plugin)
	cmd.Stdin = strings.NewReader(string(stdin))
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS=" + ns.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(plugin),
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=uid-1",
	}
	output(t, nil, cmd)
}

// addDetour runs detour's ADD for a namespace and returns the line that it logged.
func addDetour(t *testing.T, mesh string, addresses []string, ns *nettest.Namespace, manifests ...object) object {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "manifests.yaml"), []byte(render(t, manifests...)), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	conf := merge(netConf("detour", addresses), object{
		"mesh": mesh, "backend": "iptables", "manifests": filepath.Join(dir, "manifests.yaml"), "stateDir": filepath.Join(dir, "state"), "logFile": log,
	})
	add(t, program(t, "detour", "detour"), conf, ns)
	line, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(line))
}

// startPod is the namespace of a pod with addresses, which are some of nettest's.
func startPod(t *testing.T, addresses []string) *nettest.Namespace {
	t.Helper()
	pod := nettest.StartWorld(t).Pod
	for _, a := range []string{"10.77.0.2/24", "fd77::2/64"} {
		if !slices.Contains(addresses, a) {
			output(t, pod, command(t, "ip", "addr", "del", a, "dev", "eth0"))
		}
	}
	return pod
}
