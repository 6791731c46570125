package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/decision"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/mesh"
	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/pod"
)

// addition is one ADD on its way: what is known of the pod, what is decided, and the record of it.
type addition struct {
	*call
	source   source
	objects  kube.Objects
	decision decision.Decision
	record   attachment.Record
}

// add programs the pod's redirection and passes prevResult on. It is idempotent. On any error nothing is programmed, and
// the pod does not start unless the net conf allows that.
func add(c *call) error {
	a := &addition{call: c, record: c.newRecord()}
	err := c.invalid
	if err == nil {
		err = a.run()
	}
	if err != nil {
		err = a.failed(err)
	}
	a.logResult(err)
	a.report(err)
	if a.record.Outcome == attachment.Failed {
		return err
	}
	return types.PrintResult(c.conf.PrevResult, c.conf.CNIVersion)
}

// run looks the pod up, decides, and carries the decision out.
func (a *addition) run() error {
	ctx, cancel := a.deadline()
	defer cancel()
	err := a.find(ctx)
	if err == nil && a.decision.Skip == "" {
		err = a.decide(a.addresses)
	}
	a.took.done(agentapi.StageDecide)
	switch {
	case err != nil:
		return err
	case a.decision.Skip != "":
		a.record.Outcome, a.record.Reason = attachment.Skipped, a.decision.Skip
		return a.leaveAlone(ctx)
	}
	if err := a.program(ctx); err != nil {
		return fmt.Errorf("program pod %s: %w", a.pod, err)
	}
	return nil
}

// source is where the pod and the mesh's configuration come from.
type source interface {
	Lookup(context.Context, kube.Request) (kube.Objects, error)
	Ready(context.Context, mesh.ConfigRef) error
}

func (c *call) openSource() (source, error) {
	switch {
	case c.conf.Manifests != "":
		return kube.NewManifests(c.conf.Manifests)
	case c.conf.AgentSocket != "":
		return kube.NewAgent(c.conf.AgentSocket, c.conf.Kubeconfig), nil
	}
	return kube.NewAPI(c.conf.Kubeconfig)
}

// find looks the pod and its mesh's configuration up. It asks nobody about a pod that is left alone whatever it is.
func (a *addition) find(ctx context.Context) (err error) {
	if a.unusable != nil {
		return a.unusable
	}
	a.decision.Skip = a.conf.Excluded(a.pod.Namespace)
	if a.pod == (pod.ID{}) {
		a.decision.Skip = "it is not a Kubernetes pod: CNI_ARGS names none"
	}
	if a.decision.Skip != "" {
		return nil
	}
	defer a.took.done(agentapi.StageLookup)
	if a.source, err = a.openSource(); err != nil {
		return err
	}
	a.objects, err = a.source.Lookup(ctx, kube.NewRequest(a.conf.Dialect, a.pod))
	if err != nil && ctx.Err() != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return err
}

// decide says what the mesh wants of the pod with these addresses.
func (a *addition) decide(addresses []netip.Addr) (err error) {
	a.decision, err = a.conf.Decide(decision.Input{
		ID: a.pod, Pod: a.objects.Pod, Config: a.objects.Config, ConfigAbsent: a.objects.ConfigAbsent, Addresses: addresses,
	})
	if err != nil {
		return refused(err)
	}
	if a.decision.Skip == "" && a.pod.UID == "" {
		a.warn("the runtime passes no K8S_POD_UID: a pod that was replaced under the same name would go unnoticed")
	}
	return nil
}

func (a *addition) warn(text string) { a.decision.Warnings = append(a.decision.Warnings, text) }

// newRecord is what the call says of the attachment, without what becomes of it.
func (c *call) newRecord() attachment.Record {
	r := attachment.Record{
		Key:       c.key,
		Netns:     c.netns,
		Mesh:      c.conf.Dialect.Name,
		Outcome:   attachment.Programmed,
		Time:      time.Now().UTC(),
		Addresses: c.addresses,
	}
	if c.pod != (pod.ID{}) {
		r.Pod, r.PodUID = c.pod.String(), c.pod.UID
	}
	return r
}

// program enters the pod's network namespace and programs what was decided.
func (a *addition) program(ctx context.Context) error {
	n, err := a.enter(ctx)
	if err != nil {
		return err
	}
	defer n.ns.Close()
	if a.record.NamespaceID, err = n.ns.ID(); err != nil {
		return err
	}
	err = n.ns.Do(func() error { return a.programIn(ctx, n) })
	if err != nil && len(n.others) == 0 {
		return errors.Join(err, n.ns.Forget())
	}
	return err
}

// programIn runs in the namespace, which is locked.
func (a *addition) programIn(ctx context.Context, n *namespace) error {
	// Where no detour has been and nothing is, there are no records to look for.
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
		err = n.settle(&a.record)
	}
	if err != nil {
		return errors.Join(err, n.undo(ctx, a.record))
	}
	return nil
}

// apply programs the rules in the place of all that is stale. The record, with what may be there, is written ahead: whatever
// comes after a kill can mend it.
func (a *addition) apply(ctx context.Context, n *namespace, program *backend.Program, stale []attachment.Record) error {
	program.Keep(&a.record)
	a.record.Stale = replaced(stale, a.record)
	if err := a.store.Save(a.record); err != nil {
		return err
	}
	a.took.done(agentapi.StageSave)
	defer a.took.done(agentapi.StageApply)
	return program.Apply(ctx, n.lock, a.record.Stale...)
}

// join decides anew if the namespace has other attachments: with the addresses of all, so that the decision can only be wider
// than theirs. A pod that two meshes want is refused.
func (a *addition) join(n *namespace) error {
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

// leaveAlone keeps why the pod is left alone. It touches the namespace only for what an earlier ADD programmed there for this
// attachment.
func (a *addition) leaveAlone(ctx context.Context) error {
	id, first, err := netns.Mark(a.conf.StateDir, a.netns)
	if err == nil && first {
		_, err = a.store.Load(a.key)
	}
	a.record.NamespaceID = id
	if first && errors.Is(err, fs.ErrNotExist) {
		return a.store.Save(a.record)
	}
	n := &namespace{call: a.call}
	if err := n.look(id); err != nil {
		return err
	}
	a.record.Time = n.since(a.record.Time)
	if n.leftAlone() {
		return a.store.Save(a.record)
	}
	if err := n.enter(ctx); err != nil {
		return err
	}
	defer n.ns.Close()
	unknown := slices.ContainsFunc(n.own, is(unreadable))
	if err := n.ns.Do(func() error { return n.leave(ctx, unknown) }); err != nil {
		return err
	}
	return errors.Join(n.forget(), a.store.Save(a.record))
}

// failed keeps what a failed ADD leaves: nothing, or what the net conf's onError allows.
func (a *addition) failed(err error) error {
	coded := cniError(err)
	a.record = a.newRecord()
	a.record.Outcome, a.record.Reason = attachment.Failed, err.Error()
	if a.conf.AllowOnError && a.invalid == nil && a.conf.PrevResult != nil && coded.Code != agentapi.CodeRefused {
		a.allow()
	}
	return coded
}

// allow keeps that the pod starts although it could not be programmed. What an earlier ADD programmed, and this one has not
// taken back, stays.
func (a *addition) allow() {
	old, err := a.store.Load(a.key)
	if err == nil && old.Outcome == attachment.Programmed {
		a.record = old
		return
	}
	a.record.Outcome, a.record.Stale = attachment.Allowed, old.Traces()
	if err == nil {
		a.record.Time = old.Time
	}
	_ = a.store.Save(a.record) // the log has it already
}

// reportPatience is how long the agent may take to hear what became of a pod; nobody waits for it longer.
const reportPatience = 100 * time.Millisecond

// report tells the agent, if there is one, what became of a pod's ADD.
func (a *addition) report(err error) {
	if a.conf.AgentSocket == "" || a.pod == (pod.ID{}) {
		return
	}
	r := agentapi.Report{
		ID: a.pod, Outcome: a.record.Outcome, Reason: a.record.Reason, Backend: a.record.Backend, Stages: a.took.byName(),
		Fallback: a.objects.Fallback != "",
	}
	if err != nil {
		r.Code = cniError(err).Code
	}
	agent, ok := a.source.(*kube.Agent)
	if !ok { // nobody was asked
		agent = kube.NewAgent(a.conf.AgentSocket, "")
	}
	_ = agent.Report(context.Background(), r, time.Now().Add(reportPatience))
}

// addEvents are the log's words for what became of an ADD.
var addEvents = map[attachment.Outcome]struct {
	level          slog.Level
	event, message string
}{
	attachment.Programmed: {slog.LevelInfo, "add-programmed", "pod programmed"},
	attachment.Skipped:    {slog.LevelInfo, "add-skipped", "pod left alone"},
	attachment.Allowed:    {slog.LevelError, "add-allowed", "pod starts UNMESHED: onError is allow"},
	attachment.Failed:     {slog.LevelError, "add-failed", "pod does not start"},
}

// logResult writes the one line that tells what became of an ADD and how long each stage took.
func (a *addition) logResult(err error) {
	r := a.record
	say := addEvents[r.Outcome]
	attrs := []slog.Attr{
		slog.String("pod", r.Pod),
		slog.String("podUID", r.PodUID),
		slog.String("mesh", r.Mesh),
		slog.String("outcome", string(r.Outcome)),
	}
	if err != nil {
		attrs = append(attrs, slog.Uint64("code", uint64(cniError(err).Code)), slog.String("error", err.Error()))
	}
	if err != nil && r.Outcome == attachment.Programmed {
		say.level, say.event, say.message = slog.LevelError, "add-kept", "pod starts as an earlier ADD programmed it: onError is allow"
	}
	if r.Reason != "" {
		attrs = append(attrs, slog.String("reason", r.Reason))
	}
	if r.Backend != "" {
		attrs = append(attrs, slog.String("backend", r.Backend))
	}
	if r.Outcome == attachment.Programmed {
		attrs = append(attrs, slog.Int("rules", backend.RuleCount(r)), slog.Any("families", r.Families))
	}
	if a.objects.Fallback != "" {
		attrs = append(attrs, slog.String("fallback", a.objects.Fallback))
	}
	if len(a.decision.Warnings) > 0 {
		say.level = max(say.level, slog.LevelWarn)
		attrs = append(attrs, slog.Any("warnings", a.decision.Warnings))
	}
	attrs = append(attrs, slog.String("event", say.event), a.took.attr())
	a.log.LogAttrs(context.Background(), say.level, say.message, attrs...)
}
