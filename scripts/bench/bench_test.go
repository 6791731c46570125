package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend/nftables"
	"github.com/detour-cni/detour/pkg/nettest"
)

// bin holds detour and the floors.
var bin = nettest.Programs("../../plugin/detour", "./...")

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func startLab(t *testing.T) *lab {
	t.Helper()
	nettest.RequireNetns(t)
	l, err := newLab(t.Context(), bin(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func TestEveryComparisonIsFair(t *testing.T) {
	l := startLab(t)
	for _, c := range comparisons {
		if l.absent[c.detour.backend] != "" {
			continue
		}
		if err := l.fair(c); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestAComparisonIsUnfairIf(t *testing.T) {
	nettest.RequireProgram(t, "iptables-nft-restore")
	l := startLab(t)
	good := restoring("iptables-nft", false)
	if why := l.absent[good.detour.backend]; why != "" {
		t.Fatal(why)
	}
	for name, change := range map[string]func(*comparison){
		"the floor leaves out a family": func(c *comparison) { c.floor.v4only = true },
		"the floor does nothing":        func(c *comparison) { c.floor = printing },
		"detour does nothing":           func(c *comparison) { c.detour = printing },
	} {
		c := good
		change(&c)
		if err := l.fair(c); err == nil {
			t.Errorf("not if %s", name)
		}
	}
}

func TestTheXtablesLockIsHeldUntilItIsClosed(t *testing.T) {
	nettest.RequireNetns(t) // as root
	held, err := holdXtablesLock()
	if err != nil {
		t.Fatal(err)
	}
	another, err := os.Open(xtablesLock)
	if err != nil {
		t.Fatal(err)
	}
	defer another.Close()
	if err := unix.Flock(int(another.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		t.Error("somebody else got it meanwhile")
	}
	held.Close()
	if err := unix.Flock(int(another.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestOnlyRedirectedConnectionsCount(t *testing.T) {
	l := startLab(t)
	for _, of := range l.tracks() {
		if of.exclusions > 100 {
			continue
		}
		err := withPods(2, func(pods []*nettest.World) error {
			if err := l.lay(t.Context(), of, pods[0].Pod); err != nil {
				return err
			}
			if rate, err := connectionRate(pods[0], of); err != nil || rate < 10 {
				t.Errorf("%s: %g connections per second, %v", of, rate, err)
			}
			direct := of.rules == nothing || of.rules == tracking
			if rate, err := connectionRate(pods[1], of); err == nil != direct {
				t.Errorf("%s: %g connections per second without a rule, %v", of, rate, err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", of, err)
		}
	}
}

// Connection tracking alone tracks, and without rules nothing is tracked.
func TestWhatIsTracked(t *testing.T) {
	l := startLab(t)
	for rules, want := range map[string]bool{nothing: false, tracking: true, threeRules: true, nftables.Name: true} {
		for _, inbound := range []bool{false, true} {
			of := track{rules: rules, inbound: inbound}
			err := withPods(1, func(pods []*nettest.World) error {
				ns := pods[0].Pod
				if err := l.lay(t.Context(), of, ns); err != nil {
					return err
				}
				listener, err := 0, error(nil)
				if err := ns.Do(func() error { listener, err = listen(of.port()); return err }); err != nil {
					return err
				}
				defer unix.Close(listener)
				client := ns
				if inbound {
					client = pods[0].Outside
				}
				if err := client.Do(func() error { return connectOnce(of.destination(), listener) }); err != nil {
					return err
				}
				var flows []*netlink.ConntrackFlow
				if err := ns.Do(func() error {
					flows, err = netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
					return err
				}); err != nil {
					return err
				}
				if tracked := len(flows) > 0; tracked != want {
					t.Errorf("%s: tracked: %t, want %t", of, tracked, want)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", of, err)
			}
		}
	}
}

func TestAProgramIsAskedForItsMemory(t *testing.T) {
	l := startLab(t)
	memory, err := peakMemory(l, exec.Command("/bin/true"))
	if err != nil || memory < 100e3 || memory > 100e6 {
		t.Errorf("%g bytes, %v", memory, err)
	}
	if _, err := peakMemory(l, exec.Command("/bin/false")); err == nil {
		t.Error("a failure goes unnoticed")
	}
}

func TestSumInitTrace(t *testing.T) {
	t.Parallel()
	got, err := sumInitTrace("init runtime @0.10 ms, 0.25 ms clock, 0 bytes, 0 allocs\nother\ninit net/http @1.2 ms, 1.5 ms clock, 4800 bytes, 60 allocs\n")
	if err != nil || got != 1.75 {
		t.Errorf("got %g, %v", got, err)
	}
	for _, wrong := range []string{"", "no trace\n", "init net @0.5 ms, x ms clock, 0 bytes\n", "init net\n"} {
		if got, err := sumInitTrace(wrong); err == nil {
			t.Errorf("%q gives %g", wrong, got)
		}
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for want, values := range map[int][]int{7: {7}, 2: {9, 1, 2}, 3: {9, 3, 1, 4}} {
		if got := median(values); got != want {
			t.Errorf("of %v: got %d, want %d", values, got, want)
		}
	}
}

func TestPrintTable(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	printTable(&out, []row{
		compared("1", "ADD", 4*time.Millisecond, 5*time.Millisecond, limit{value: 1.3}),
		compared("1", "DEL", 4*time.Millisecond, 6*time.Millisecond, limit{value: 1.3}),
		rated("many", 20_000, 19_000, limit{value: 0.95, atLeast: true}),
		rated("more", 20_000, 18_000, limit{value: 0.95, atLeast: true}),
		rated("beside", 20_000, 25_000, limit{}),
		absolute("size", 8.456, "MB", 12),
	})
	want := `
|   | what   | floor   | detour  | ratio | limit   |            |
| - | ------ | ------- | ------- | ----- | ------- | ---------- |
| 1 | ADD    | 4.00 ms | 5.00 ms | 1.25  | ≤ 1.3   | met        |
| 1 | DEL    | 4.00 ms | 6.00 ms | 1.50  | ≤ 1.3   | **missed** |
| 4 | many   | 20.0k/s | 19.0k/s | 0.95  | ≥ 0.95  | met        |
| 4 | more   | 20.0k/s | 18.0k/s | 0.90  | ≥ 0.95  | **missed** |
| 4 | beside | 20.0k/s | 25.0k/s | 1.25  |         |            |
| 7 | size   |         | 8.46 MB |       | ≤ 12 MB | met        |
`
	if got := "\n" + out.String(); got != want {
		t.Errorf("got%swant%s", got, want)
	}
}
