package cniplugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
	"github.com/detour-cni/detour/pkg/redirect"
)

// add programs the pod's redirection and passes prevResult on. It is idempotent. On any error nothing is programmed, and the
// pod does not start unless the net conf allows that.
func add(c *call) error {
	a := newAttempt(c)
	err := a.run()
	if err != nil {
		err = a.fail(err)
	}
	a.logOutcome(err)
	a.report(err)
	if a.record.Outcome == attachment.Failed {
		return err
	}
	return types.PrintResult(a.prevResult, a.conf.CNIVersion)
}

// attempt is one ADD on its way: what is known of the pod, what is decided, and the record of it.
type attempt struct {
	*call
	prevResult types.Result
	addresses  []netip.Addr // the pod's, in prevResult
	prevErr    error
	source     kube.Source
	objects    kube.Objects
	decision   decision.Decision
	record     attachment.Record
}

func newAttempt(c *call) *attempt {
	a := &attempt{call: c}
	a.prevResult, a.addresses, a.prevErr = parsePrevResult(c.conf)
	a.record = a.newRecord()
	a.took.done(agentapi.StageConf)
	return a
}

// newRecord is the record of an attempt that goes well.
func (a *attempt) newRecord() attachment.Record {
	r := attachment.Record{
		Key:       a.key,
		Netns:     a.netns,
		Mesh:      a.conf.Dialect.Name,
		Outcome:   attachment.Programmed,
		Time:      time.Now().UTC(),
		Addresses: a.addresses,
	}
	if a.pod != (pod.ID{}) {
		r.Pod, r.PodUID = a.pod.String(), a.pod.UID
	}
	return r
}

// run decides about the pod and carries the decision out.
func (a *attempt) run() error {
	if a.confErr != nil {
		return a.confErr
	}
	ctx, cancel := a.deadline()
	defer cancel()
	err := a.plan(ctx)
	a.took.done(agentapi.StageDecide)
	switch {
	case err != nil:
		return err
	case a.decision.Skip != "":
		return a.leaveAlone(ctx)
	}
	if err := a.program(ctx); err != nil {
		return fmt.Errorf("program pod %s: %w", a.pod, err)
	}
	return nil
}

// plan looks the pod up and decides what to program. It makes no lookup for a pod that is left alone in any case.
func (a *attempt) plan(ctx context.Context) error {
	if err := cmp.Or(a.prevErr, a.argsErr); err != nil {
		return err
	}
	a.decision.Skip = a.conf.Excluded(a.pod.Namespace)
	if a.pod == (pod.ID{}) {
		a.decision.Skip = "it is not a Kubernetes pod: CNI_ARGS names none"
	}
	if a.decision.Skip == "" {
		if err := a.lookup(ctx); err != nil {
			return err
		}
		if err := a.decide(a.addresses); err != nil {
			return err
		}
	}
	if a.decision.Skip != "" {
		a.record.Outcome, a.record.Reason = attachment.Skipped, a.decision.Skip
	}
	return nil
}

// lookup gets the pod and its mesh's configuration.
func (a *attempt) lookup(ctx context.Context) (err error) {
	defer a.took.done(agentapi.StageLookup)
	if a.source, err = kube.Open(a.conf.Manifests, a.conf.AgentSocket, a.conf.Kubeconfig); err != nil {
		return err
	}
	a.objects, err = a.source.Lookup(ctx, kube.NewRequest(a.conf.Dialect, a.pod))
	if err != nil && ctx.Err() != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return err
}

// decide says what the mesh wants of the pod with these addresses.
func (a *attempt) decide(addresses []netip.Addr) (err error) {
	a.decision, err = a.conf.Decide(decision.Input{
		ID: a.pod, Pod: a.objects.Pod, Config: a.objects.Config, ConfigAbsent: a.objects.ConfigAbsent, Addresses: addresses,
	})
	if err != nil {
		return refused(err)
	}
	if a.objects.Old != "" {
		a.warn(a.objects.Old)
	}
	if a.decision.Skip == "" && a.pod.UID == "" {
		a.warn("the runtime passes no K8S_POD_UID: a pod that was replaced under the same name would go unnoticed")
	}
	return nil
}

func (a *attempt) warn(text string) { a.decision.Warnings = append(a.decision.Warnings, text) }

// program enters the pod's network namespace and programs what was decided.
func (a *attempt) program(ctx context.Context) error {
	n, err := a.enter(ctx)
	if err != nil {
		return err
	}
	defer n.ns.Close()
	if a.record.NamespaceID, err = n.ns.ID(); err != nil {
		return err
	}
	programmed := false
	err = n.ns.Do(func() error {
		err := a.programIn(ctx, n)
		programmed = err == nil
		return err
	})
	if err != nil && programmed { // the thread could not leave, and so is still there
		err = errors.Join(err, n.undo(ctx, a.record))
	}
	if err != nil && len(n.others) == 0 {
		return errors.Join(err, n.ns.Forget())
	}
	return err
}

// programIn runs in the namespace and under its lock.
func (a *attempt) programIn(ctx context.Context, n *namespace) error {
	// A namespace without rules, which no detour has entered before, has no records.
	if n.fresh = backend.Fresh(); !n.fresh || !n.ns.First {
		if err := n.look(a.record.NamespaceID); err != nil {
			return err
		}
	}
	a.record.Time = n.since(a.record.Time)
	if err := a.join(n); err != nil {
		return err
	}
	program, err := backend.Prepare(ctx, a.conf.Backend, a.decision.Rules, a.decision.Families)
	if err != nil {
		return err
	}
	stale := n.stale()
	a.took.done(agentapi.StageEnter)
	err = a.apply(ctx, n, program, stale)
	if err != nil && ctx.Err() == nil {
		if other := program.Fallback(ctx); other != nil {
			a.warn("nftables was taken instead of iptables, which does not work here: " + err.Error())
			err = a.apply(ctx, n, other, append(stale, a.record.Traces()...))
		}
	}
	if err == nil {
		err = n.syncRecords(&a.record)
	}
	if err != nil {
		return errors.Join(err, n.undo(ctx, a.record))
	}
	return nil
}

// apply programs the rules and removes what is stale. It saves the record first, stale part included, so that a later call can
// clean up if this one is killed.
func (a *attempt) apply(ctx context.Context, n *namespace, program *backend.Program, stale []attachment.Record) error {
	program.Keep(&a.record)
	a.record.Asked = redirect.AskedOf(a.decision.Policy)
	a.record.Stale = onlyStale(stale, a.record)
	if err := a.store.Save(a.record); err != nil {
		return err
	}
	a.took.done(agentapi.StageSave)
	defer a.took.done(agentapi.StageApply)
	return program.Apply(ctx, n.lock, a.record.Stale...)
}

// join decides again, with the addresses of all attachments, if the namespace has others: the decision can only become wider. It
// refuses a pod that two meshes want.
func (a *attempt) join(n *namespace) error {
	if other, ok := n.programmed(); ok && other.Mesh != a.record.Mesh {
		return refused(fmt.Errorf("pod %s: network %q has it in mesh %s by interface %s, and network %q wants it in mesh %s by %s: take detour out of one of them, or add the namespace to its excludeNamespaces",
			a.pod, other.Network, other.Mesh, other.IfName, a.record.Network, a.record.Mesh, a.record.IfName))
	}
	addresses := n.addresses(a.record)
	if len(addresses) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult has no address: detour must stand after the plugin that gives the pod its addresses", "")
	}
	if len(n.others) == 0 {
		return nil
	}
	return a.decide(addresses)
}

// leaveAlone records why the pod is left alone. It enters the namespace only to remove what an earlier ADD programmed for this
// attachment. A state folder that can't be used does not keep such a pod from starting.
func (a *attempt) leaveAlone(ctx context.Context) error {
	id, first, err := netns.Mark(a.conf.StateDir, a.netns)
	if err == nil && first {
		_, err = a.store.Load(a.key)
	}
	a.record.NamespaceID = id
	if first && errors.Is(err, fs.ErrNotExist) {
		a.note()
		return nil
	}
	n := &namespace{call: a.call}
	if err := n.look(id); err != nil {
		a.warn(err.Error())
	}
	a.record.Time = n.since(a.record.Time)
	if n.leftAlone() {
		a.note()
		return nil
	}
	if err := n.enter(ctx); err != nil {
		return err
	}
	defer n.ns.Close()
	unknown := slices.ContainsFunc(n.own, is(unreadable))
	if err := n.ns.Do(func() error { return n.leave(ctx, unknown) }); err != nil {
		return err
	}
	if err := n.forget(); err != nil {
		return err
	}
	a.note()
	return nil
}

// note saves the record of a pod that is left alone. Only CHECK and detourctl would read it.
func (a *attempt) note() {
	if err := a.store.Save(a.record); err != nil {
		a.warn(err.Error())
	}
}
