package cniplugin

import (
	"cmp"
	"context"
	"log/slog"
	"time"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/kube"
	"github.com/detour-cni/detour/pkg/pod"
)

// fail ends an attempt that failed: nothing is recorded, unless the net conf's onError lets the pod start.
func (a *attempt) fail(err error) error {
	coded := cniError(err)
	a.record = a.newRecord()
	a.record.Outcome, a.record.Reason = attachment.Failed, err.Error()
	usable := a.confErr == nil && a.prevErr == nil
	if usable && a.conf.AllowOnError && coded.Code != agentapi.CodeRefused {
		a.allow()
	}
	return coded
}

// allow records that the pod starts although it could not be programmed. If an earlier ADD programmed it, its rules and record
// stay.
func (a *attempt) allow() {
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

// reportPatience bounds how long a pod waits for the agent to take the report.
const reportPatience = 100 * time.Millisecond

// report tells the agent, if there is one, the outcome of a pod's ADD.
func (a *attempt) report(err error) {
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
	if !ok { // there was no lookup
		agent = kube.NewAgent(a.conf.AgentSocket, "")
	}
	_ = agent.Report(context.Background(), r, time.Now().Add(reportPatience))
}

// logLine is how a log line begins.
type logLine struct {
	level          slog.Level
	event, message string
}

var (
	addLines = map[attachment.Outcome]logLine{
		attachment.Programmed: {slog.LevelInfo, "add-programmed", "pod programmed"},
		attachment.Skipped:    {slog.LevelInfo, "add-skipped", "pod left alone"},
		attachment.Allowed:    {slog.LevelError, "add-allowed", "pod starts UNMESHED: onError is allow"},
		attachment.Failed:     {slog.LevelError, "add-failed", "pod does not start"},
	}
	addKept = logLine{slog.LevelError, "add-kept", "pod starts as an earlier ADD programmed it: onError is allow"}
)

// logOutcome writes the one line that says what became of the pod, why, and how long each stage took.
func (a *attempt) logOutcome(err error) {
	r, reason := a.record, a.record.Reason
	line := addLines[r.Outcome]
	attrs := []slog.Attr{slog.String("mesh", r.Mesh), slog.String("outcome", string(r.Outcome))}
	if err != nil {
		attrs = append(attrs, slog.Uint64("code", uint64(cniError(err).Code)))
		reason = cmp.Or(reason, err.Error())
	}
	if r.Outcome == attachment.Programmed {
		attrs = append(attrs, slog.Int("rules", backend.RuleCount(r)), slog.Any("families", r.Families))
		if err != nil {
			line = addKept
		}
	}
	for _, o := range []struct{ key, value string }{{"reason", reason}, {"backend", r.Backend}, {"fallback", a.objects.Fallback}} {
		if o.value != "" {
			attrs = append(attrs, slog.String(o.key, o.value))
		}
	}
	if len(a.decision.Warnings) > 0 {
		line.level = max(line.level, slog.LevelWarn)
		attrs = append(attrs, slog.Any("warnings", a.decision.Warnings))
	}
	attrs = append(attrs, slog.String("event", line.event), a.took.attr())
	a.log.LogAttrs(context.Background(), line.level, line.message, attrs...)
}
