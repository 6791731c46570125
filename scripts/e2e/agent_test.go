//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// conflist is the node's network configuration.
func conflist(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(shell(t, "ls /etc/cni/net.d/*.conflist | head -n 1"))
}

// plugins are the types of the node's chain.
func plugins(t *testing.T) []string {
	t.Helper()
	var list struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal([]byte(shell(t, "cat "+conflist(t))), &list); err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, p := range list.Plugins {
		types = append(types, p.Type)
	}
	return types
}

const agentLabel = "app.kubernetes.io/component=agent"

// rollout waits until the newest agent is ready.
func rollout(t *testing.T) {
	t.Helper()
	must(t, tryRollout(t))
}

func tryRollout(t *testing.T) error {
	t.Helper()
	_, err := tryKubectl(t, "rollout", "status", "daemonset/detour-agent", "--namespace", "detour-system", "--timeout="+atMost.String())
	return err
}

func TestPodsStartMeshedWhileTheAgentRestarts(t *testing.T) {
	installDetour(t)
	namespace := newNamespace(t, "agent-restart", restricted)
	kubectl(t, "delete", "pod", "--namespace", "detour-system", "--selector="+agentLabel, "--wait=false")
	for i := range 3 {
		startMeshed(t, namespace, fmt.Sprint("meanwhile-", i))
	}
	rollout(t)
	startMeshed(t, namespace, "afterwards")
}

// nextVersion is a folder with the programs of another version: they have a few more bytes.
func nextVersion(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range detourPrograms {
		content, err := os.ReadFile(filepath.Join(folder("BIN"), program))
		must(t, err)
		must(t, os.WriteFile(filepath.Join(dir, program), append(content, "next"...), 0o700))
	}
	return dir
}

func TestARivalsConflistIsMended(t *testing.T) {
	installDetour(t)
	defer dropDetour(t)()
	wantDetourInChain(t)
	shell(t, "rm /opt/cni/bin/detour")
	eventually(t, func() error {
		if shell(t, "test -x /opt/cni/bin/detour || echo missing") != "" {
			return errors.New("the binary is missing")
		}
		return nil
	})
	rollout(t)
	startMeshed(t, newNamespace(t, "rival", restricted), "web")
}

// dropDetour writes the node's chain as an installer does that knows nothing of detour. restore writes it as it was, to the byte.
func dropDetour(t *testing.T) (restore func()) {
	t.Helper()
	before := shell(t, "cat "+conflist(t))
	var list map[string]any
	if err := json.Unmarshal([]byte(before), &list); err != nil {
		t.Fatal(err)
	}
	list["plugins"] = list["plugins"].([]any)[:1]
	text, err := json.Marshal(list)
	must(t, err)
	writeOnNode(t, conflist(t), "644", text)
	return func() { writeOnNode(t, conflist(t), "644", []byte(before)) }
}

// wantDetourInChain wants that the agent puts detour back, within some time.
func wantDetourInChain(t *testing.T) {
	t.Helper()
	eventually(t, func() error {
		if got := plugins(t); !slices.Contains(got, "detour") {
			return fmt.Errorf("the chain is %v", got)
		}
		return nil
	})
}

func TestMetricsAreWhatTheAlertsNeed(t *testing.T) {
	installDetour(t)
	startMeshed(t, newNamespace(t, "metrics", restricted), "web")
	const wanted = `^detour_(adds_total\{.*programmed.* [1-9]|ready 1$|token_expiry_timestamp_seconds [1-9])`
	eventually(t, func() error {
		out := shell(t, `bash -c 'exec 3<>/dev/tcp/127.0.0.1/15014; printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; grep -E "`+wanted+`" <&3 || :'`)
		if strings.Count(out, "\n") != 3 {
			return fmt.Errorf("of ADDs, readiness and the token's expiry, the agent's metrics say: %s", out)
		}
		return nil
	})
}

// The agent's memory with 100 meshed pods on its node, at most 40 MB.
func TestTheAgentsMemoryWithManyPods(t *testing.T) {
	installDetour(t)
	const pods, limitKB = 100, 40_000
	namespace := newNamespace(t, "many", restricted)
	var all strings.Builder
	for i := range pods {
		all.WriteString("---\n" + meshedPod(t, namespace, fmt.Sprint("web-", i), nil, "127.0.0.1:8080"))
	}
	apply(t, all.String())
	kubectl(t, "wait", "--namespace", namespace, "--for=condition=Ready", "--timeout=15m", "--all", "pod")
	kb, err := strconv.Atoi(strings.TrimSpace(shell(t, "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(pgrep -x detour-agent)/status")))
	must(t, err)
	t.Logf("the agent has %.1f MB with %d pods", float64(kb)/1000, pods)
	if kb > limitKB {
		t.Errorf("that is more than %d kB", limitKB)
	}
}
