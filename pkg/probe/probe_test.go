package probe

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
	"github.com/detour-cni/detour/pkg/testcase"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// program programs a case's rules for these families.
func program(t *testing.T, pod *nettest.Namespace, choice, name string, families []rules.Family) {
	t.Helper()
	decision, err := testcase.Find(t, "../..", name).Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	err = testcase.Inside(t, pod, func(ctx context.Context, lock *os.File) error {
		p, err := backend.Prepare(ctx, choice, decision.Policy.Ruleset(), families)
		if err != nil {
			return err
		}
		return p.Apply(ctx, lock, attachment.Record{})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// in returns how the probe gets into a namespace.
func in(ns *nettest.Namespace) func(func() error) error { return ns.Do }

// as has connections belong to a user and its group.
func as(ns *nettest.Namespace, id int) func(func() error) error {
	return func(f func() error) error {
		return ns.Do(func() error {
			defer func() { _, _ = unix.SetfsuidRetUid(0) }()
			defer func() { _, _ = unix.SetfsgidRetGid(0) }()
			_, errGID := unix.SetfsgidRetGid(id)
			_, errUID := unix.SetfsuidRetUid(id)
			if errGID != nil || errUID != nil {
				return fmt.Errorf("%w, %w", errGID, errUID)
			}
			return f()
		})
	}
}

// short is a finding without its words.
type short struct {
	Family    int
	Direction Direction
	Result    Result
	Proxy     bool
}

func check(t *testing.T, p Probe, want ...short) {
	t.Helper()
	found := p.Run(t.Context())
	if len(found) != len(want) {
		t.Fatalf("got %+v", found)
	}
	for i, f := range found {
		if got := (short{f.Family, f.Direction, f.Result, f.Proxy}); got != want[i] {
			t.Errorf("got %+v (%s), want %+v", got, f.Detail, want[i])
		}
	}
}

func TestEachDirectionOfEachFamily(t *testing.T) {
	nettest.RequireNetns(t)
	for _, name := range []string{"osm/guide", "osm-v1/defaults", "istio/defaults"} {
		for _, choice := range []string{backend.NFTables, backend.IPTables} {
			t.Run(name+" "+choice, func(t *testing.T) {
				t.Parallel()
				w := nettest.StartWorld(t)
				p := Probe{
					Addresses: []netip.Addr{nettest.PodIPv4, nettest.PodIPv6}, OutboundPort: 15001, InboundPorts: []uint16{15003, 15006}, To: Nowhere,
					In: in(w.Pod), Outside: in(w.Outside),
				}
				check(t, p, short{4, Outbound, Broken, false}, short{4, Inbound, Broken, false}, short{6, Outbound, Broken, false}, short{6, Inbound, Broken, false})
				program(t, w.Pod, choice, name, []rules.Family{rules.IPv4})
				check(t, p, short{4, Outbound, Works, false}, short{4, Inbound, Works, false}, short{6, Outbound, Broken, false}, short{6, Inbound, Broken, false})
				program(t, w.Pod, choice, name, rules.Families)
				check(t, p, short{4, Outbound, Works, false}, short{4, Inbound, Works, false}, short{6, Outbound, Works, false}, short{6, Inbound, Works, false})
				if err := w.Serve(nil, 15001, 15003, 15006); err != nil {
					t.Fatal(err)
				}
				check(t, p, short{4, Outbound, Works, true}, short{4, Inbound, Works, true}, short{6, Outbound, Works, true}, short{6, Inbound, Works, true})
			})
		}
	}
}

func TestInsideThePod(t *testing.T) {
	nettest.RequireNetns(t)
	t.Parallel()
	w := nettest.StartWorld(t)
	program(t, w.Pod, backend.NFTables, "istio/defaults", rules.Families)
	app := Probe{Addresses: []netip.Addr{nettest.PodIPv4}, OutboundPort: 15001, InboundPorts: []uint16{15006}, To: Nowhere, In: as(w.Pod, 1000)}
	check(t, app, short{4, Outbound, Works, false}, short{4, Inbound, Unproven, false})
	proxy := app
	proxy.In, proxy.AsProxy, proxy.SelfCalls = as(w.Pod, 1337), true, true
	check(t, proxy, short{4, Outbound, Unproven, false}, short{4, Inbound, Works, false})
	stranger := proxy // redirected nowhere
	stranger.In = as(w.Pod, 1338)
	check(t, stranger, short{4, Outbound, Unproven, false}, short{4, Inbound, Broken, false})
	stranger.SelfCalls = false
	check(t, stranger, short{4, Outbound, Unproven, false}, short{4, Inbound, Unproven, false})
}
