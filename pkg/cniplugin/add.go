package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
		record.Outcome, record.Reason, record.Rules, record.Table = outcomeFailed, err.Error(), nil, ""
	}
	if err != nil && conf.AllowOnError {
		message = "pod starts UNMESHED: it could not be programmed and onError is allow"
		record.Outcome = attachment.Allowed
		_ = attachment.NewStore(conf.StateDir).Save(record) // the log has it already
	}
	logAdd(log, level, message, p, record, took)
	report(conf, p, record, err, took)
	if record.Outcome == outcomeFailed {
		return cniError(err)
	}
	return types.PrintResult(conf.PrevResult, conf.CNIVersion)
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
	}
	if err != nil {
		r.Code = cniError(err).Code
	}
	_ = agentapi.Tell(context.Background(), conf.AgentSocket, r, reportPatience)
}

// carryOut does what the plan says and keeps it as attachment state; if it fails, it leaves no rules.
func carryOut(ctx context.Context, conf Conf, args *skel.CmdArgs, p *plan, record *attachment.Record, took *stages) error {
	store := attachment.NewStore(conf.StateDir)
	if p.Skip != "" {
		return store.Save(*record)
	}
	if err := program(ctx, conf, args.Netns, p, store, record, took); err != nil {
		return fmt.Errorf("program pod %s: %w", p.ID, err)
	}
	return nil
}

func program(ctx context.Context, conf Conf, path string, p *plan, store attachment.Store, record *attachment.Record, took *stages) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	lock, err := ns.Lock(ctx, conf.StateDir)
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		program, err := p.prepare(ctx, conf)
		if err != nil {
			return err
		}
		took.done("enter")
		old, _ := store.Load(record.Key) // none is the rule, and one that makes no sense is written anew
		run := func(program *backend.Program) error {
			program.Keep(record)
			if err := store.Save(*record); err != nil {
				return err
			}
			took.done("save")
			defer took.done("apply")
			return program.Apply(ctx, lock, old)
		}
		err = run(program)
		if err == nil {
			return nil
		}
		if other := program.Instead(); ctx.Err() == nil && other != nil {
			p.Warnings = append(p.Warnings, "nftables was taken instead of iptables, which does not work here: "+err.Error())
			if err = run(other); err == nil {
				return nil
			}
		}
		return errors.Join(err, store.Delete(record.Key))
	})
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
	if len(p.Warnings) > 0 {
		attrs = append(attrs, slog.Any("warnings", p.Warnings))
	}
	log.LogAttrs(context.Background(), level, message, append(attrs, took.attr())...)
}
