package cniplugin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/netconf"
	"github.com/detour-cni/detour/pkg/pod"
)

// call is what a runtime gave the plugin for one verb, parsed once.
type call struct {
	conf netconf.Conf
	// invalid is what is wrong with the net conf. All verbs fail for it but DEL, for which conf has all that could be used.
	invalid error
	key     attachment.Key
	pod     pod.ID // the zero ID if the container is not Kubernetes'
	netns   string
	// addresses are those that the plugins ahead gave this interface.
	addresses []netip.Addr
	// unusable is what is wrong with CNI_ARGS and prevResult. Only a verb that decides about the pod fails for it.
	unusable error

	store attachment.Store
	log   *slog.Logger
	file  io.Closer // the log's
	took  *stages
}

// newCall parses what the runtime gave.
func newCall(verb, version string, args *skel.CmdArgs) *call {
	c := &call{netns: args.Netns, took: startStages()}
	c.conf, c.invalid = netconf.Parse(args.StdinData)
	c.key = attachment.Key{Network: c.conf.Name, ContainerID: args.ContainerID, IfName: args.IfName}
	c.store = attachment.NewStore(c.conf.StateDir)
	var badArgs, badResult error
	c.pod, badArgs = parseArgs(args.Args)
	c.addresses, badResult = parsePrevResult(&c.conf)
	c.unusable = errors.Join(badResult, badArgs)
	c.log, c.file = openLog(c.conf)
	c.log = c.log.With("verb", verb, "version", version)
	if c.key.ContainerID != "" {
		c.log = c.log.With("containerID", c.key.ContainerID, "netns", c.netns)
	}
	c.took.done(agentapi.StageConf)
	return c
}

func (c *call) deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.conf.Timeout)
}

// parsePrevResult fills conf.PrevResult, which a chained plugin must be given, and returns the addresses in it.
func parsePrevResult(conf *netconf.Conf) ([]netip.Addr, error) {
	if conf.RawPrevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: detour must stand after the plugin that sets up the pod's network", "")
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	result, err := types100.NewResultFromResult(conf.PrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	var out []netip.Addr
	for _, ip := range result.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, addr.Unmap())
		}
	}
	return out, nil
}
