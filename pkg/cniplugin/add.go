package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
)

// add programs the pod's redirection and passes prevResult on. It is idempotent. On any error nothing is programmed, and
// the pod does not start unless the net conf allows that.
func add(args *skel.CmdArgs) error {
	took := startStages()
	conf, err := ParseConf(args.StdinData)
	if err != nil {
		return err
	}
	if err := parsePrevResult(&conf); err != nil {
		return err
	}
	log, file := openLog(conf)
	defer file.Close()
	took.done("conf")

	ctx, cancel := context.WithTimeout(context.Background(), conf.Timeout)
	defer cancel()
	p, err := makePlan(ctx, conf, args, took)
	took.done("decide")
	record := p.record(conf, args)
	if err == nil {
		err = carryOut(ctx, conf, args, &p, &record, took)
	}
	level, message := slog.LevelInfo, "pod "+string(record.Outcome)
	if err != nil {
		level, message = slog.LevelError, "pod does not start: it could not be programmed"
		record = p.record(conf, args)
		record.Outcome, record.Reason = outcomeFailed, err.Error()
	}
	if err != nil && conf.AllowOnError && cniError(err).Code != CodeRefused {
		message = allow(conf, &record)
	}
	logAdd(log, level, message, p, record, took)
	report(conf, p, record, err, took)
	if record.Outcome == outcomeFailed {
		return cniError(err)
	}
	return types.PrintResult(conf.PrevResult, conf.CNIVersion)
}

// allow keeps that the pod starts although it could not be programmed, and returns what to tell of it. What an earlier ADD
// programmed, and this one has not taken back, stays.
func allow(conf Conf, record *attachment.Record) string {
	store := attachment.NewStore(conf.StateDir)
	old, err := store.Load(record.Key)
	if err == nil && old.Outcome == attachment.Programmed {
		*record = old
		return "pod starts as an earlier ADD programmed it: it could not be programmed anew and onError is allow"
	}
	record.Outcome, record.Stale = attachment.Allowed, old.Traces()
	if err == nil {
		record.Time = old.Time
	}
	_ = store.Save(*record) // the log has it already
	return "pod starts UNMESHED: it could not be programmed and onError is allow"
}

// outcomeFailed is in the log and in what the agent is told; there is no record of it.
const outcomeFailed attachment.Outcome = "failed"

// reportPatience is how long the agent may take to hear what became of a pod; nobody waits for it longer.
const reportPatience = 100 * time.Millisecond

// report tells the agent, if there is one, what became of a pod's ADD.
func report(conf Conf, p plan, record attachment.Record, err error, took *stages) {
	if conf.AgentSocket == "" || p.ID == (identity{}) {
		return
	}
	r := agentapi.Report{
		Namespace: p.ID.Namespace, Name: p.ID.Name, UID: p.ID.UID,
		Outcome: string(record.Outcome), Reason: record.Reason, Backend: record.Backend, Stages: took.byName(),
		Fallback: p.objects.Fallback != "",
	}
	if err != nil {
		r.Code = cniError(err).Code
	}
	_ = agentapi.Tell(context.Background(), conf.AgentSocket, r, reportPatience)
}

// carryOut does what the plan says and keeps it as attachment state.
func carryOut(ctx context.Context, conf Conf, args *skel.CmdArgs, p *plan, record *attachment.Record, took *stages) error {
	if p.Skip != "" {
		return leaveAlone(ctx, conf, args, record)
	}
	if err := program(ctx, conf, args.Netns, p, record, took); err != nil {
		return fmt.Errorf("program pod %s: %w", p.ID, err)
	}
	return nil
}

func program(ctx context.Context, conf Conf, path string, p *plan, record *attachment.Record, took *stages) error {
	ns, lock, err := enter(ctx, conf, path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if record.NamespaceID, err = ns.ID(); err != nil {
		return err
	}
	h := holding{store: attachment.NewStore(conf.StateDir)}
	err = ns.Do(func() error {
		// Where no detour has been and nothing is, there are no records to look for.
		if h.fresh = backend.Fresh(); !h.fresh || !ns.First {
			if err := h.look(record.Key, record.PodUID, path, record.NamespaceID); err != nil {
				return err
			}
		}
		record.Time = h.since(record.Time)
		if err := p.join(conf, h, *record); err != nil {
			return err
		}
		return h.program(ctx, conf, lock, p, record, took)
	})
	if err != nil && len(h.others) == 0 {
		return errors.Join(err, ns.Forget())
	}
	return err
}

// enter opens and locks the namespace at path.
func enter(ctx context.Context, conf Conf, path string) (*netns.Pod, *os.File, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, nil, err
	}
	lock, err := ns.Lock(ctx, conf.StateDir)
	if err != nil {
		ns.Close()
		return nil, nil, err
	}
	return ns, lock, nil
}

// leaveAlone keeps why the pod is left alone. It touches the namespace only for what an earlier ADD programmed there for this
// attachment.
func leaveAlone(ctx context.Context, conf Conf, args *skel.CmdArgs, record *attachment.Record) error {
	h := holding{store: attachment.NewStore(conf.StateDir)}
	id, first, err := netns.Mark(conf.StateDir, args.Netns)
	if err == nil && first {
		_, err = h.store.Load(record.Key)
	}
	record.NamespaceID = id
	if first && errors.Is(err, fs.ErrNotExist) {
		return h.store.Save(*record)
	}
	if err := h.look(record.Key, record.PodUID, args.Netns, id); err != nil {
		return err
	}
	record.Time = h.since(record.Time)
	if h.leftAlone() {
		return h.store.Save(*record)
	}
	ns, lock, err := enter(ctx, conf, args.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	unknown := slices.ContainsFunc(h.own, is(unreadable))
	if err := ns.Do(func() error { return h.leave(ctx, conf, lock, unknown) }); err != nil {
		return err
	}
	return errors.Join(h.forget(record.Key), h.store.Save(*record))
}

// logAdd writes the one line that tells what became of an ADD and how long each stage took.
func logAdd(log *slog.Logger, level slog.Level, message string, p plan, r attachment.Record, took *stages) {
	if len(p.Warnings) > 0 {
		level = max(level, slog.LevelWarn)
	}
	attrs := []slog.Attr{
		slog.String("verb", "ADD"),
		slog.String("pod", r.Pod),
		slog.String("containerID", r.ContainerID),
		slog.String("netns", r.Netns),
		slog.String("mesh", r.Mesh),
		slog.String("outcome", string(r.Outcome)),
	}
	if r.Reason != "" {
		attrs = append(attrs, slog.String("reason", r.Reason))
	}
	if r.Backend != "" {
		attrs = append(attrs, slog.String("backend", r.Backend))
	}
	if r.Outcome == attachment.Programmed {
		attrs = append(attrs, slog.Int("rules", backend.RuleCount(r)), slog.Any("families", p.Families))
	}
	if p.objects.Fallback != "" {
		attrs = append(attrs, slog.String("fallback", p.objects.Fallback))
	}
	if len(p.Warnings) > 0 {
		attrs = append(attrs, slog.Any("warnings", p.Warnings))
	}
	log.LogAttrs(context.Background(), level, message, append(attrs, took.attr())...)
}
