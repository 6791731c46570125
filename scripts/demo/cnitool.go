package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

// The networks: the file names of their configurations and the names that cnitool is given.
const (
	outsideNetwork = "outside"
	podNetwork     = "pods"
)

// bridgeConf configures the plugin bridge, which creates the node's bridge if it is missing, with host-local. The verbs are
// host-local's folder, its ranges and its routes.
const bridgeConf = `{
	"type": "bridge", "bridge": "cni0",
	"ipam": {
		"type": "host-local", "dataDir": %q,
		"ranges": [
			[{"subnet": "10.88.0.0/24", %s}],
			[{"subnet": "fd88::/64", %s}]
		],
		"routes": [%s]
	}
}`

// The outside is the one address that the pods have as gateway, and so it can't be allocated in the pods' network.
const (
	outsideRange4 = `"rangeStart": "10.88.0.1", "rangeEnd": "10.88.0.1", "gateway": "10.88.0.254"`
	outsideRange6 = `"rangeStart": "fd88::1", "rangeEnd": "fd88::1", "gateway": "fd88::fe"`
	podRange4     = `"gateway": "10.88.0.1"`
	podRange6     = `"gateway": "fd88::1"`
	podRoutes     = `{"dst": "0.0.0.0/0"}, {"dst": "::/0"}`
)

// detourConf is detour's own part of the chain.
const detourConf = `{"type": "detour", "mesh": %q, "manifests": %q, "backend": %q, "stateDir": %q, "logFile": %q}`

// cnitool runs the program of that name on the node, as a container runtime runs CNI.
type cnitool struct {
	options options
	node    *nettest.Namespace
	dir     string // for configurations, state and log
}

// configure writes the configurations of both networks.
func (c cnitool) configure() error {
	data := filepath.Join(c.dir, "ipam")
	outside := fmt.Sprintf(bridgeConf, data, outsideRange4, outsideRange6, "")
	pods := []string{fmt.Sprintf(bridgeConf, data, podRange4, podRange6, podRoutes)}
	if !c.options.withoutDetour {
		pods = append(pods, fmt.Sprintf(detourConf, c.options.scenario.Mesh, c.options.folder(), cmp.Or(c.options.backend, "auto"), filepath.Join(c.dir, "state"), c.logFile()))
	}
	return errors.Join(
		os.Mkdir(filepath.Join(c.dir, "varlib"), 0o700),
		c.writeConf(outsideNetwork, outside),
		c.writeConf(podNetwork, pods...),
	)
}

func (c cnitool) writeConf(network string, plugins ...string) error {
	text := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": %q, "plugins": [%s]}`, network, strings.Join(plugins, ","))
	return os.WriteFile(filepath.Join(c.dir, network+".conflist"), []byte(text), 0o600)
}

func (c cnitool) logFile() string { return filepath.Join(c.dir, "detour.log") }

// add attaches a namespace to a network, as that of pod unless pod is zero, and returns the addresses it got.
func (c cnitool) add(ctx context.Context, network string, ns *nettest.Namespace, pod podID) (dual, error) {
	out, err := c.run(ctx, "add", network, ns, pod)
	if err != nil {
		return dual{}, err
	}
	var result types100.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return dual{}, fmt.Errorf("read the result of cnitool add: %w", err)
	}
	var got dual
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		if addr = addr.Unmap(); addr.Is4() {
			got[0] = addr
		} else {
			got[1] = addr
		}
	}
	if !got[0].IsValid() || !got[1].IsValid() {
		return dual{}, fmt.Errorf("cnitool add: the result has not an address of each family: %s", out)
	}
	return got, nil
}

func (c cnitool) del(ctx context.Context, network string, ns *nettest.Namespace, pod podID) error {
	_, err := c.run(ctx, "del", network, ns, pod)
	return err
}

// run runs cnitool in the node's namespace and returns what it printed.
func (c cnitool) run(ctx context.Context, verb, network string, ns *nettest.Namespace, pod podID) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(c.options.tools, "cnitool"), verb, network, ns.Path())
	// A group of its own: a Ctrl-C is for the demo, which still needs cnitool to clean up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "CNI_PATH="+c.options.tools+":"+c.options.plugins, "NETCONFPATH="+c.dir)
	if pod != (podID{}) {
		cmd.Env = append(cmd.Env, fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", pod.Namespace, pod.Name, pod.UID))
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	var out []byte
	err := c.node.Do(func() error {
		if err := c.hideVarLib(); err != nil {
			return err
		}
		var err error
		out, err = cmd.Output()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cnitool %s %s: %w", verb, network, explain(err, stderr.String()))
	}
	return out, nil
}

// explain returns cnitool's last line, which has the error below the usage, or err if cnitool printed nothing.
func explain(err error, stderr string) error {
	said := strings.TrimSpace(stderr)
	if said == "" {
		return err
	}
	return errors.New(said[strings.LastIndexByte(said, '\n')+1:])
}

// hideVarLib gives the calling thread, and what it starts, another /var/lib: cnitool keeps results in /var/lib/cni and
// has no option for another folder.
func (c cnitool) hideVarLib() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount(filepath.Join(c.dir, "varlib"), "/var/lib", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("hide /var/lib: %w", err)
	}
	return nil
}
