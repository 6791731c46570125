package cniplugin

import (
	"encoding/json"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/detour-cni/detour/pkg/netconf"
)

// parsePrevResult returns the result of the plugins ahead, which a chained plugin must be given, and the pod's addresses in it.
// Errors are CNI errors with code 6 or 7.
func parsePrevResult(conf netconf.Conf) (types.Result, []netip.Addr, error) {
	if conf.PrevResult == nil {
		return nil, nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: detour must stand after the plugin that sets up the pod's network", "")
	}
	result, err := decodeResult(conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	var has struct { // in every version
		IPs []struct {
			Address types.IPNet `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(conf.PrevResult, &has); err != nil {
		return nil, nil, types.NewError(types.ErrDecodingFailure, "prevResult: "+err.Error(), "")
	}
	var addresses []netip.Addr
	for _, ip := range has.IPs {
		if addr, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addresses = append(addresses, addr.Unmap())
		}
	}
	return result, addresses, nil
}

// decodeResult decodes a result that has a version, or else the net conf's. The library's ParsePrevResult does the same, but
// more slowly: it decodes everything twice.
func decodeResult(confVersion string, data json.RawMessage) (types.Result, error) {
	if result, err := create.Create(confVersion, data); err == nil {
		return result, nil
	}
	conf := types.PluginConf{CNIVersion: confVersion}
	if err := json.Unmarshal(data, &conf.RawPrevResult); err != nil {
		return nil, err
	}
	err := version.ParsePrevResult(&conf)
	return conf.PrevResult, err
}
