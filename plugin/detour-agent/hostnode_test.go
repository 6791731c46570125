//go:build faults

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/detour-cni/detour/pkg/hostfile"
	"github.com/detour-cni/detour/pkg/nettest"
)

var program = nettest.Programs(".")

// image is what the agent's pod has: a plugin, an entry, a token and an authority.
type image struct{ version, config string }

var images = []image{{"1", `{"mesh": "osm"}`}, {"2", `{"mesh": "osm", "onError": "allow"}`}}

// tree is what folders hold: paths and contents, in which the root is written as a sign.
type tree map[string]string

const rootSign = "@ROOT@"

// hostNode is a node's folders.
type hostNode struct {
	root string
	seen string // root as the test sees it
}

func newHostNode(t *testing.T, holds tree, i image) *hostNode {
	t.Helper()
	root, err := os.MkdirTemp("", "faults") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	n := &hostNode{root, root}
	all := maps.Clone(holds)
	all["pod/plugin"], all["pod/netconf.json"], all["pod/token"], all["pod/ca.crt"] = "plugin "+i.version, i.config, "token "+i.version, "authority "+i.version
	all["bin/bridge"] = "somebody else's"
	for path, text := range all {
		mode := fs.FileMode(0o644)
		switch {
		case strings.HasPrefix(filepath.Base(path), "detour-"):
			mode = 0o600
		case strings.HasPrefix(path, "bin/"):
			mode = 0o755
		}
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(strings.ReplaceAll(text, rootSign, root)), mode)); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// holds returns what is in the node's folders. Temporary files are in temps.
func (n *hostNode) holds() (found tree, temps []string) {
	found = tree{}
	for _, dir := range []string{"net.d", "bin"} {
		entries, _ := os.ReadDir(filepath.Join(n.seen, dir))
		for _, e := range entries {
			path := dir + "/" + e.Name()
			if strings.HasPrefix(e.Name(), ".detour-") {
				temps = append(temps, path)
				continue
			}
			if text, err := hostfile.Read(filepath.Join(n.seen, path), 1<<20); err == nil {
				found[path] = strings.ReplaceAll(string(text), n.root, rootSign)
			}
		}
	}
	delete(found, "bin/bridge")
	return found, temps
}

// agents start the real agent on nodes, where the kubelet has put a ServiceAccount.
type agents struct{ *nettest.Mounts }

const serviceAccount = `
mount -t tmpfs tmpfs "$(readlink -f /var/run)"
d=/var/run/secrets/kubernetes.io/serviceaccount; mkdir -p $d; echo token >$d/token; : >$d/ca.crt`

// command is the agent's verb run or uninstall.
func (a agents) command(t *testing.T, n *hostNode, verb string) *exec.Cmd {
	t.Helper()
	at := func(flag, name string) string { return "--" + flag + "=" + filepath.Join(n.root, name) }
	args := []string{verb, at("cni-bin-dir", "bin"), at("cni-conf-dir", "net.d"), at("state-dir", "state")}
	if verb == "run" {
		args = append(args, at("config", "pod/netconf.json"), at("plugin", "pod/plugin"), at("token-file", "pod/token"), at("ca-file", "pod/ca.crt"), "--metrics=127.0.0.1:0")
	} else {
		args = append(args, at("cni-cache-dir", "cache"), "--once")
	}
	cmd := exec.Command(filepath.Join(program(t), "detour-agent"), args...)
	cmd.Env = append(os.Environ(), "NODE_NAME=n1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=1")
	if err := a.Enter(cmd); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// safeBuffer may be written to and read at once.
type safeBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
