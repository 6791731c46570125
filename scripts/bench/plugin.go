package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

// The programs.
const (
	detour   = "detour"
	floor    = "floor"    // programs what package least says, prints prevResult
	floorGet = "floorget" // the same after two GETs
)

// backends have detour's names.
var (
	iptablesVariants = []string{"iptables-nft", "iptables-legacy"}
	backends         = append([]string{nftables.Name}, iptablesVariants...)
)

// plugin is a run of a plugin, as a runtime starts it. A floor skips the steps of its zero fields.
type plugin struct {
	program string
	verb    string
	source  string // of the pod: manifests, agent or api
	backend string // one of iptablesVariants or nftables.Name
	v4only  bool   // the pod has no IPv6 address
	locked  bool   // the host's xtables lock is held during the run
}

func (p plugin) String() string {
	return strings.Join(strings.Fields(strings.Join([]string{p.program, p.verb, p.source, p.backend}, " ")), " ")
}

func (p plugin) families() []rules.Family {
	if p.v4only {
		return []rules.Family{rules.IPv4}
	}
	return rules.Families
}

// command is the plugin's process for the pod in a network namespace.
func (l *lab) command(p plugin, ns *nettest.Namespace) *exec.Cmd {
	conf, err := json.Marshal(l.conf(p))
	if err != nil {
		panic(err) // it has only strings
	}
	cmd := exec.Command(filepath.Join(l.bin, p.program))
	cmd.Stdin = bytes.NewReader(conf)
	cmd.Env = append(os.Environ(),
		"CNI_COMMAND="+p.verb, "CNI_CONTAINERID="+ns.Name(), "CNI_NETNS="+ns.Path(), "CNI_IFNAME="+nettest.PodLink, "CNI_PATH="+l.bin,
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_UID=%s", podNamespace, podName, podUID))
	cmd.Env = append(cmd.Env, l.floorEnv(p)...)
	if slices.Contains(iptablesVariants, p.backend) {
		cmd.Env = append(cmd.Env, "PATH="+l.path(p.backend))
	}
	return cmd
}

// conf is the plugin's net conf.
func (l *lab) conf(p plugin) map[string]any {
	ips := []any{map[string]any{"address": nettest.PodIPv4.String() + "/24"}}
	if !p.v4only {
		ips = append(ips, map[string]any{"address": nettest.PodIPv6.String() + "/64"})
	}
	conf := map[string]any{
		"cniVersion": "1.1.0", "name": "bench", "type": detour, "mesh": meshName, "stateDir": l.path("state"), "logFile": l.logFile(p),
		"prevResult": map[string]any{"cniVersion": "1.1.0", "ips": ips, "dns": map[string]any{}},
	}
	switch p.source {
	case "manifests":
		conf["manifests"] = l.path("short.yaml")
	case "agent":
		conf["agentSocket"] = l.path("agent.sock")
	case "api":
		conf["kubeconfig"] = l.path("kubeconfig")
	}
	switch {
	case p.backend == nftables.Name:
		conf["backend"] = p.backend
	case p.backend != "":
		conf["backend"] = "iptables" // PATH has only one variant
	}
	return conf
}

// timed runs the plugin and returns its wall time.
func (l *lab) timed(p plugin, ns *nettest.Namespace) (time.Duration, error) {
	if p.locked {
		lock, err := holdXtablesLock()
		if err != nil {
			return 0, err
		}
		defer lock.Close()
	}
	cmd := l.command(p, ns)
	began := time.Now()
	out, err := cmd.Output()
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", p, explained(err), bytes.TrimSpace(out))
	}
	return took, nil
}
