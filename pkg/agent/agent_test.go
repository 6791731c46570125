package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/agent/cache"
	"github.com/detour-cni/detour/pkg/agent/nodepod"
	"github.com/detour-cni/detour/pkg/agent/repair"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childState); dir != "" {
		os.Exit(runChild(dir))
	}
	os.Exit(nettest.Main(m))
}

// hasty is for tests. What bounds the wait for somebody who may only be slow, on a busy machine, is less so.
var hasty = timing{
	request: 2 * nettest.Patience,
	lookup:  5 * time.Second,
	silence: time.Hour,
	old:     200 * time.Millisecond,
	ready:   time.Second,
	probe:   20 * time.Millisecond,
	config:  20 * time.Millisecond,
	node:    50 * time.Millisecond,
	check:   20 * time.Millisecond,
	repair:  repair.Timing{Sweep: 30 * time.Millisecond, Check: 20 * time.Millisecond, Settle: time.Second, Evict: time.Millisecond},
}

func osm(t testing.TB) mesh.Dialect {
	d, ok := mesh.Find("osm")
	if !ok {
		t.Fatal("no dialect osm")
	}
	return d
}

// newTestAgent makes an agent of the server that does not run yet.
func newTestAgent(t testing.TB, s *agenttest.Server, change func(*Config)) *Agent {
	return newPatientAgent(t, s, change, func(*timing) {})
}

// newPatientAgent is newTestAgent with another timing.
func newPatientAgent(t testing.TB, s *agenttest.Server, change func(*Config), patience func(*timing)) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf := Config{
		Node: "n1", Options: decision.Options{Dialect: osm(t)}, Kubeconfig: s.Kubeconfig(t), StateDir: dir, MetricsAddr: "127.0.0.1:0",
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	if change != nil {
		change(&conf)
	}
	timing := hasty
	patience(&timing)
	a, err := newAgent(conf, timing)
	if err != nil {
		t.Fatal(err)
	}
	a.repairer.Booted = time.Unix(1, 0)
	return a
}

// start runs the agent until the test ends or stop is called.
func start(t testing.TB, a *Agent) (stop func()) {
	t.Helper()
	stop = agenttest.Start(t, a.Run)
	return stop
}

// startServed returns an agent that knows pod shop/a.
func startServed(t testing.TB, change func(*Config)) (*agenttest.Server, *Agent) {
	t.Helper()
	nettest.RequireNetns(t) // root: the socket serves nobody else
	s := agenttest.NewServer(t)
	s.Put(agenttest.PodPath("shop", "a"), agenttest.Pod("a"))
	s.Put(agenttest.ConfigPath, agenttest.Config())
	a := newTestAgent(t, s, change)
	start(t, a)
	agenttest.Eventually(t, "the agent serves", func() bool { return a.isSynced() && a.socket.Serving() })
	return s, a
}

// isSynced reports whether the agent knows the cluster.
func (a *Agent) isSynced() bool { return cluster{a}.Known() }

// usual is what the agent knows of osm's configuration.
func (a *Agent) usual() cache.Config {
	return a.cache.ConfigOf(nodepod.Pod{Config: a.conf.Dialect.Config.Name})
}

func (a *Agent) store() attachment.Store { return attachment.NewStore(a.conf.StateDir) }

func TestConfigurationsThatCanNotBe(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	good := func() Config {
		return Config{Node: "n1", Options: decision.Options{Dialect: osm(t)}, Kubeconfig: s.Kubeconfig(t)}
	}
	if _, err := New(good()); err != nil {
		t.Fatal(err)
	}
	for words, change := range map[string]func(*Config){
		"is not a node's name":     func(c *Config) { c.Node = "a/b" },
		"there is no mesh":         func(c *Config) { c.Dialect.Name = "" },
		"not in the state folder":  func(c *Config) { c.Socket = "/run/agent.sock" },
		"none of report, evict":    func(c *Config) { c.Repair = "mend" },
		"no such file":             func(c *Config) { c.Kubeconfig = "/nonexistent" },
		"unable to load in-cluste": func(c *Config) { c.Kubeconfig = "" },
	} {
		c := good()
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}
}

func TestRunFailsIfItCanNotServe(t *testing.T) {
	t.Parallel()
	s := agenttest.NewServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	taken := newTestAgent(t, s, func(c *Config) { c.MetricsAddr = s.Listener.Addr().String() })
	if err := taken.Run(ctx); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("the port is taken: %v", err)
	}
}

// Whatever is wrong with the state folder, the agent says so, and serves as soon as it can.
func TestAnAgentWaitsForItsStateFolder(t *testing.T) {
	t.Parallel()
	a := newTestAgent(t, agenttest.NewServer(t), nil)
	if err := errors.Join(os.Mkdir(a.conf.Socket, 0o700), os.WriteFile(filepath.Join(a.conf.StateDir, "attachments"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	agenttest.Start(t, a.Run)
	says := func(words string) func() bool {
		return func() bool { return strings.Contains(fmt.Sprint(a.Missing(t.Context())), words) }
	}
	agenttest.Eventually(t, "it says what is wrong with the socket", says("socket: make socket: "+a.conf.Socket+" exists and is not a socket"))
	agenttest.Eventually(t, "it says what is wrong with the folder", says("state folder: make state folder: "))
	if err := errors.Join(os.Remove(a.conf.Socket), os.Remove(filepath.Join(a.conf.StateDir, "attachments"))); err != nil {
		t.Fatal(err)
	}
	agenttest.Eventually(t, "it serves", func() bool { return !says("socket: ")() && !says("state folder: ")() })
}
