package main

import (
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/detour-cni/detour/pkg/cniplugin"
	"github.com/detour-cni/detour/pkg/nettest"
)

// TestMain makes the test's own binary the agent and the plugin, for tests that start them.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asAgent) != "":
		main()
	case os.Getenv("CNI_COMMAND") != "":
		skel.PluginMainFuncs(cniplugin.Funcs(), cniplugin.Versions(), "")
		os.Exit(0)
	}
	os.Exit(nettest.Main(m))
}
