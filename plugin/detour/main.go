// Command detour is the CNI plugin: a chained plugin that redirects a meshed pod's TCP connections to its sidecar proxy.
package main

import (
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/detour-cni/detour/pkg/build"
	"github.com/detour-cni/detour/pkg/cniplugin"
)

func main() { os.Exit(run()) }

func run() int {
	// ADD itself refuses the host's network namespace. skel would look again after it, and fail an ADD that is done.
	os.Setenv("CNI_NETNS_OVERRIDE", "1")
	err := skel.PluginMainFuncsWithError(cniplugin.Funcs(), cniplugin.Versions(), "CNI plugin detour "+build.Get().String())
	if err == nil {
		return 0
	}
	if printErr := err.Print(); printErr != nil {
		fmt.Fprintf(os.Stderr, "detour: %v\n", err)
	}
	return 1
}
