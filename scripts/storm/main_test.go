//go:build storm

package storm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"

	"github.com/detour-cni/detour/pkg/agent"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
)

// programs are what a chain is made of: detour, the plugin that does nothing, and the plugin that connects the pods.
var programs = nettest.Programs("../../plugin/detour", "../bench/floor", "tool")

// Of the child that is the agent: its state folder and its kubeconfig.
const (
	agentState  = "DETOUR_STORM_STATE"
	agentConfig = "DETOUR_STORM_KUBECONFIG"
)

func TestMain(m *testing.M) {
	if os.Getenv(agentState) == "" {
		os.Exit(nettest.Main(m))
	}
	if err := runAgent(); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

// runAgent is `detour-agent run` without the installation.
func runAgent() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	osm, _ := mesh.Find("osm")
	a, err := agent.New(agent.Config{
		Node: "n1", Options: decision.Options{Dialect: osm}, Repair: repair.Report, StateDir: os.Getenv(agentState), MetricsAddr: metricsAddr(os.Getppid()),
		Kubeconfig: os.Getenv(agentConfig), NetnsDir: os.Getenv(agentState), Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// metricsAddr is where the agent that a process has started serves its metrics; no other process takes that address.
func metricsAddr(parent int) string {
	return fmt.Sprintf("127.%d.%d.1:15014", 64+(parent>>8)%64, parent%256)
}

// number is a number of the environment, or another one.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is not a number above 0", name, text)
	}
	return n
}
