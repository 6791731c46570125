package nftables_test

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/snapshot/nftables"
)

func take(t *testing.T, ns *nettest.Namespace) (s *nftables.Snapshot) {
	t.Helper()
	err := ns.Do(func() (err error) {
		s, err = nftables.Take(nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func file(t *testing.T, name string) string {
	t.Helper()
	rules, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(rules)
}

// withFile is a namespace with the rules of a file.
func withFile(t *testing.T, name string) *nettest.Namespace {
	t.Helper()
	ns := start(t, "file")
	run(t, ns, "", "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	run(t, ns, file(t, name), "nft", "-f", "-")
	return ns
}

func TestTheOutlineAndTheRulesOfTheChainsAreTheListing(t *testing.T) {
	t.Parallel()
	s := take(t, withFile(t, "set.nft"))
	must := func(listing []byte, err error) []any {
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, listing)
	}
	got := append(must(s.Outline()), must(s.Rules("inet", "sets", "one"))...)
	if want := must(s.Listing()); !reflect.DeepEqual(got, want) {
		t.Errorf("got %d objects, want %d", len(got), len(want))
	}
	if got := must(s.Rules("inet", "sets", "none")); len(got) != 0 {
		t.Errorf("a chain that does not exist has %v", got)
	}
}

func TestASnapshotOfARulesetThatHasChangedSaysSo(t *testing.T) {
	t.Parallel()
	ns := withFile(t, "set.nft")
	s := take(t, ns)
	run(t, ns, "", "nft", "add", "table", "ip", "new")
	for name, write := range map[string]func() ([]byte, error){
		"Listing": s.Listing, "Outline": s.Outline, "Rules": func() ([]byte, error) { return s.Rules("inet", "sets", "one") },
	} {
		if listing, err := write(); !errors.Is(err, netlink.ErrChanged) || listing != nil {
			t.Errorf("%s: %d bytes, %v", name, len(listing), err)
		}
	}
}

// A ruleset is replaced, again and again, by one of other marks. No listing has both kinds.
func TestReadIsConsistent(t *testing.T) {
	t.Parallel()
	ns := start(t, "busy")
	version := func(n int) string {
		var b strings.Builder
		b.WriteString("table ip busy\ndelete table ip busy\ntable ip busy {\n")
		for i := range 200 {
			fmt.Fprintf(&b, "chain c%d { meta mark %d ip saddr { 10.0.0.1, 10.0.0.2, 10.1.0.%d } accept; }\n", i, n, n)
		}
		return b.String() + "}\n"
	}
	run(t, ns, version(1), "nft", "-f", "-")
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		defer close(done)
		for n := 1; !stop.Load(); n = 3 - n {
			run(t, ns, version(n), "nft", "-f", "-")
			time.Sleep(20 * time.Millisecond) // longer than it takes to read them
		}
	}()
	for range 30 {
		err := ns.Do(func() error {
			listing, err := nftables.Read(nil)
			if err != nil {
				return err
			}
			for _, mark := range []string{"1", "2"} {
				if n := strings.Count(string(listing), `"right": `+mark+`}`); n != 0 && n != 200 {
					t.Errorf("%d rules have mark %s", n, mark)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	<-done
}

func TestSkippedTablesHaveNoContent(t *testing.T) {
	t.Parallel()
	ns := start(t, "skip")
	run(t, ns, "table ip filter { chain c { accept; }; set s { type mark; }; }\ntable ip6 filter { chain c { accept; }; }\n", "nft", "-f", "-")
	listing := read(t, ns, func(family, table string) bool { return family == "ip" && table == "filter" })
	got := text(t, parse(t, listing))
	if strings.Contains(got, `"family":"ip","handle"`) && !strings.Contains(got, `"table":{"family":"ip"`) ||
		strings.Count(got, `"chain":{`) != 1 || strings.Contains(got, `"set":`) || strings.Count(got, `"table":{`) != 2 {
		t.Error(got)
	}
}

func TestReadWithoutCapabilitiesSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	ns := start(t, "denied")
	err := ns.DoUnprivileged(func() error {
		_, err := nftables.Read(nil)
		return err
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v", err)
	}
}

func TestANamespaceWithoutRulesHasAnEmptyListing(t *testing.T) {
	t.Parallel()
	if got := parse(t, read(t, start(t, "empty"), nil)); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}
