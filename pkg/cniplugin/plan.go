package cniplugin

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/rules"
)

// plan is what ADD is going to do: leave the pod alone because of Skip, or program Rules for Families.
type plan struct {
	ID       identity
	Skip     string
	Rules    rules.Ruleset
	Families []rules.Family
	Warnings []string
	objects  kube.Objects
	// addresses are those that the plugins ahead gave this interface.
	addresses []netip.Addr
}

// source is where the pod and the mesh's configuration come from.
type source interface {
	Lookup(context.Context, kube.Request) (kube.Objects, error)
	Ready(context.Context, kube.ConfigRef) error
}

func openSource(conf Conf) (source, error) {
	switch {
	case conf.Manifests != "":
		return kube.NewManifests(conf.Manifests)
	case conf.AgentSocket != "":
		return kube.NewAgent(conf.AgentSocket, conf.Kubeconfig), nil
	}
	return kube.NewAPI(conf.Kubeconfig)
}

// makePlan finds out what the mesh wants of the pod. It asks nobody about a pod that is excluded.
func makePlan(ctx context.Context, conf Conf, args *skel.CmdArgs, took *stages) (plan, error) {
	id, err := parseArgs(args.Args)
	if err != nil {
		return plan{}, err
	}
	addresses, err := podAddresses(conf)
	p := plan{ID: id, addresses: addresses}
	switch {
	case id == identity{}:
		p.Skip = "it is not a Kubernetes pod: CNI_ARGS names none"
		return p, nil
	case slices.Contains(conf.ExcludeNamespaces, id.Namespace):
		p.Skip = fmt.Sprintf("namespace %s is excluded", id.Namespace)
		return p, nil
	}

	if err != nil {
		return p, err
	}
	p.objects, err = lookup(ctx, conf, id)
	took.done("lookup")
	if err != nil {
		return p, err
	}
	return p, p.decide(conf, addresses)
}

func lookup(ctx context.Context, conf Conf, id identity) (kube.Objects, error) {
	from, err := openSource(conf)
	if err != nil {
		return kube.Objects{}, err
	}
	objects, err := from.Lookup(ctx, kube.NewRequest(conf.Dialect, id.Namespace, id.Name, id.UID))
	if err != nil && ctx.Err() != nil {
		return objects, types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return objects, err
}

// decide says what the mesh wants of a pod with these addresses.
func (p *plan) decide(conf Conf, addresses []netip.Addr) error {
	facts, err := pod.Parse(p.objects.Pod)
	if err != nil {
		return refused(fmt.Errorf("pod %s: %w", p.ID, err))
	}
	if p.ID.UID != "" && !facts.HasUID(p.ID.UID) {
		return refused(fmt.Errorf("pod %s: the runtime starts UID %s, but the API server has UID %s: the pod was replaced meanwhile", p.ID, p.ID.UID, facts.UID))
	}
	decision, err := conf.Dialect.Decide(mesh.Input{
		Pod:        facts,
		Config:     p.objects.Config,
		Addresses:  addresses,
		DirectInit: slices.Contains(conf.DirectInit, p.ID.Namespace),
		Gated:      conf.AfterProxyStart,
	})
	if err != nil {
		return refused(err)
	}
	p.Skip, p.Warnings = decision.Skip, decision.Warnings
	if p.Skip != "" {
		return nil
	}
	if p.ID.UID == "" {
		p.Warnings = append(p.Warnings, "the runtime passes no K8S_POD_UID: a pod that was replaced under the same name would go unnoticed")
	}
	if p.objects.Config == nil {
		p.Warnings = append(p.Warnings, p.objects.ConfigAbsent+": the mesh's defaults hold")
	}
	p.Families, p.Rules = decision.Families, decision.Policy.Ruleset()
	return nil
}

// join decides anew if the namespace has other attachments: with the addresses of all, so that the decision can only be wider
// than theirs. A pod that two meshes want is refused.
func (p *plan) join(conf Conf, h holding, record attachment.Record) error {
	if other, ok := h.programmed(); ok && other.Mesh != record.Mesh {
		return refused(fmt.Errorf("pod %s: network %q has it in mesh %s by interface %s, and network %q wants it in mesh %s by %s: take detour out of one of them, or add the namespace to its excludeNamespaces",
			p.ID, other.Network, other.Mesh, other.IfName, record.Network, record.Mesh, record.IfName))
	}
	addresses := h.addresses(record)
	if len(addresses) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult has no address: detour must stand after the plugin that gives the pod its addresses", "")
	}
	if len(h.others) == 0 {
		return nil
	}
	return p.decide(conf, addresses)
}

// podAddresses are those that the plugins before this one gave the pod.
func podAddresses(conf Conf) ([]netip.Addr, error) {
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

// parsePrevResult fills conf.PrevResult, which a chained plugin must be given.
func parsePrevResult(conf *Conf) error {
	if conf.RawPrevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: detour must stand after the plugin that sets up the pod's network", "")
	}
	if err := version.ParsePrevResult(&conf.PluginConf); err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	return nil
}

// prepare makes the plan's rules ready for the pod's namespace, in which it is called.
func (p plan) prepare(ctx context.Context, conf Conf) (*backend.Program, error) {
	return backend.Prepare(ctx, conf.Backend, p.Rules, p.Families)
}

// record is the plan as attachment state, without what the prepared program keeps in it.
func (p plan) record(conf Conf, args *skel.CmdArgs) attachment.Record {
	r := attachment.Record{
		Key:     key(conf, args),
		Netns:   args.Netns,
		Mesh:    conf.Dialect.Name,
		Outcome: attachment.Programmed,
		Time:    time.Now().UTC(),

		Addresses: p.addresses,
	}
	if p.ID != (identity{}) {
		r.Pod, r.PodUID = p.ID.String(), p.ID.UID
	}
	if p.Skip != "" {
		r.Outcome, r.Reason = attachment.Skipped, p.Skip
		return r
	}
	return r
}

func key(conf Conf, args *skel.CmdArgs) attachment.Key {
	return attachment.Key{Network: conf.Name, ContainerID: args.ContainerID, IfName: args.IfName}
}
