package cniplugin

import (
	"context"
	"io"
	"log/slog"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// call is what a runtime gave the plugin for one verb. DEL must succeed with any input, so newCall keeps the errors for the
// verbs that need the part.
type call struct {
	verb    string
	conf    netconf.Conf
	confErr error
	key     attachment.Key
	netns   string
	pod     pod.ID // zero if the container is not Kubernetes' or CNI_ARGS are wrong
	argsErr error

	store   attachment.Store
	log     *slog.Logger
	logFile io.Closer
	took    *stages
}

// newCall parses what the runtime gave, except for prevResult, which only ADD and CHECK use.
func newCall(verb string, args *skel.CmdArgs) *call {
	c := &call{verb: verb, netns: args.Netns, took: startStages()}
	c.conf, c.confErr = netconf.Parse(args.StdinData)
	c.pod, c.argsErr = parseArgs(args.Args)
	c.key = attachment.Key{Network: c.conf.Name, ContainerID: args.ContainerID, IfName: args.IfName}
	c.store = attachment.NewStore(c.conf.StateDir)
	c.openLog()
	return c
}

func (c *call) deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.conf.Timeout)
}
