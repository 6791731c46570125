package repair

import (
	"context"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestAnAddThatCameFirstIsLeftAlone(t *testing.T) {
	t.Parallel()
	w, r := newRepairer(t)
	held, _ := locked(t, r, w)
	done := make(chan error, 1)
	go func() { done <- r.program(t.Context(), web) }()
	time.Sleep(50 * time.Millisecond)
	save(t, r, attachment.Record{Key: attachment.Key{Network: "pods", ContainerID: "1"}, Pod: "shop/a", PodUID: "uid-a", Outcome: attachment.Programmed})
	held.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantNoRules(t, w)
	if keys, _ := r.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("record %v", keys)
	}
}

// A pod that started unmeshed has one record after its repair: its attachment's.
func TestTheRepairOfAPodThatStartedUnmeshedTakesItsRecord(t *testing.T) {
	t.Parallel()
	w, r := newRepairer(t)
	allowed := attachment.Record{
		Key: attachment.Key{Network: "pods", ContainerID: "1", IfName: "eth0"}, Netns: "/run/netns/by-runtime", Pod: "shop/a", PodUID: "uid-a",
		Outcome: attachment.Allowed, Reason: "no API server", Addresses: []netip.Addr{nettest.PodIPv4}, Time: time.Unix(1700000000, 0).UTC(),
		// What the failed ADD could not take back goes as well.
		Stale: []attachment.Record{{Backend: nftables.Name, Families: rules.Families, Setup: rules.Setup{Loopback: []netip.Prefix{netip.MustParsePrefix("::6/128")}}}},
	}
	save(t, r, allowed)
	onLo := func(verb string) (string, error) {
		var out []byte
		err := w.Pod.Do(func() (err error) {
			out, err = exec.Command("ip", "-6", "addr", verb, "::6/128", "dev", "lo").CombinedOutput()
			return err
		})
		return string(out), err
	}
	if out, err := onLo("add"); err != nil {
		t.Fatal(out)
	}
	if err := r.program(t.Context(), web); err != nil {
		t.Fatal(err)
	}
	got, err := r.store.Load(allowed.Key)
	if err != nil || got.Outcome != attachment.Programmed || got.Reason != "" || got.Netns != allowed.Netns || got.NamespaceID == "" || !got.Time.Equal(allowed.Time) || len(got.Addresses) != 1 || len(got.Families) != 2 {
		t.Errorf("record %+v, %v", got, err)
	}
	if agenttest.Rules(t, w) == nil {
		t.Error("nothing is programmed")
	}
	if _, err := onLo("del"); err == nil || got.Stale != nil {
		t.Errorf("what the failed ADD left is still there; the record has %+v", got.Stale)
	}
	if keys, _ := r.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("there is another record: %v", keys)
	}
}

func TestADifferenceIsAnErrorAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w, r := newRepairer(t)
	ns, lock := locked(t, r, w)
	err := ns.Do(func() error {
		record := r.record(web, place{path: w.Pod.Path(), link: "eth0"}, attachment.Record{})
		return r.apply(t.Context(), lock, wanted(t, r), record, func(ctx context.Context, record attachment.Record) error {
			if err := compare(ctx, record); err != nil {
				t.Errorf("nothing is different: %v", err)
			}
			if out, err := exec.Command(record.Backend, "-t", "nat", "-F", "PROXY_OUTPUT").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
			return compare(ctx, record)
		})
	})
	if err == nil || !strings.Contains(err.Error(), "the kernel differs from what was programmed") || !strings.Contains(err.Error(), "PROXY_OUTPUT is missing") {
		t.Errorf("error %v", err)
	}
	wantNoRules(t, w)
}

// Wherever an agent is killed, the next sweep programs the pod: the record comes last, and programming again changes nothing.
func TestProgrammingAgainEndsTheSame(t *testing.T) {
	t.Parallel()
	w, r := newRepairer(t)
	var dumps []string
	for range 2 {
		if err := r.program(t.Context(), web); err != nil {
			t.Fatal(err)
		}
		dumps = append(dumps, strings.Join(agenttest.Rules(t, w), "\n"))
		if err := r.store.Delete(attachment.RepairKey("uid-a", nettest.PodLink)); err != nil {
			t.Fatal(err)
		}
	}
	if dumps[0] != dumps[1] || !strings.Contains(dumps[0], "-A PROXY_OUTPUT") {
		t.Errorf("first\n%s\nthen\n%s", dumps[0], dumps[1])
	}
}

// A transaction that the kernel does not take.
func TestWhatCanNotBeProgrammedLeavesNothing(t *testing.T) {
	t.Parallel()
	w, r := newRepairer(t)
	p := wanted(t, r)
	// iptables refuses a comment or a chain name like this, so the transaction fails.
	for i := range p.Rules.Rules {
		p.Rules.Rules[i].Chain.Name = strings.Repeat("X", 40)
	}
	ns, lock := locked(t, r, w)
	record := r.record(web, place{path: w.Pod.Path(), link: "eth0"}, attachment.Record{})
	if err := ns.Do(func() error { return r.apply(t.Context(), lock, p, record, compare) }); err == nil {
		t.Fatal("no error")
	} else {
		t.Log(err)
	}
	wantNoRules(t, w)
	if keys, _ := r.store.Keys(attachment.RepairNetwork); len(keys) > 0 {
		t.Errorf("record %v", keys)
	}
}

// Of records, which may be long, the sweep keeps what it needs.
func TestRecordsAreKeptShort(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	r := New(Config{StateDir: t.TempDir()})
	save(t, r, attachment.Record{Key: attachment.Key{Network: "one", ContainerID: "1"}, Pod: "shop/a", Outcome: attachment.Allowed, Reason: long, Payload: []byte(`"` + long + `"`)})
	records, err := r.records()
	if err != nil || len(records) != 1 || len(records[0].Reason) > 1024 || records[0].Payload != nil {
		t.Errorf("%v, %d records of which the first has a reason of %d bytes", err, len(records), len(records[0].Reason))
	}
}
