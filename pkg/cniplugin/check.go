package cniplugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/detour-cni/detour/pkg/agentapi"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/netns"
)

// check compares the kernel's rules with those that ADD programmed and fails with the first difference. If the record was lost, or
// can't be read, it compares with what ADD would program now.
func check(c *call) error {
	ctx, cancel := c.deadline()
	defer cancel()
	record, err := c.loadRecord()
	var a *attempt // unless the record is there
	if err != nil {
		a = newAttempt(c)
		err = a.predict(ctx)
		record = a.record
	}
	if err != nil || record.Outcome != attachment.Programmed {
		return err
	}
	ns, err := netns.Open(c.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		if a != nil {
			program, err := backend.Prepare(ctx, c.conf.Backend, a.decision.Rules, a.decision.Families)
			if err != nil {
				return err
			}
			program.Keep(&record)
		}
		return c.compare(ctx, record)
	})
}

// loadRecord loads the attachment's record, or else the node agent's if it has repaired the pod, or else that of another
// interface, which shares the namespace.
func (c *call) loadRecord() (attachment.Record, error) {
	record, err := c.store.Load(c.key)
	if !errors.Is(err, fs.ErrNotExist) {
		return record, err
	}
	n := &namespace{call: c}
	if err := n.look(""); err != nil {
		return record, err
	}
	if len(n.own) > 0 {
		return n.own[0], nil
	}
	if other, ok := n.programmed(); ok {
		return other, nil
	}
	return record, err
}

// predict decides as an ADD would now.
func (a *attempt) predict(ctx context.Context) error {
	if err := a.plan(ctx); err != nil || a.decision.Skip != "" {
		return err
	}
	n := &namespace{call: a.call}
	_ = n.look("") // other interfaces whose records can't be read show as differences
	return a.join(n)
}

// compare runs in the pod's namespace. The error names the first difference, the log all of them.
func (c *call) compare(ctx context.Context, record attachment.Record) error {
	different, err := backend.Differences(ctx, record)
	if err != nil || len(different) == 0 {
		return err
	}
	c.log.Error("rules differ from those that ADD programmed", "event", "check-different", "code", agentapi.CodeDifferent, "differences", different)
	return types.NewError(agentapi.CodeDifferent, fmt.Sprintf("pod %s: %s", record.Pod, different[0]), fmt.Sprintf("%d differences in all; recreate the pod", len(different)))
}
