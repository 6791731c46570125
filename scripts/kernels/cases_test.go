//go:build kernels

package kernels

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/attachment"
	"github.com/detour-cni/detour/pkg/backend"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/testcase"
)

// few have every kind of rule between them.
var few = []string{
	"osm/defaults", "fsm/exclusions", "osm/ports-more-than-15", "osm/after-proxy-start", "osm-edge/pod-ip", "osm-edge/local-dns-proxy",
	"istio/defaults", "istio/tproxy", "istio/dns-capture", "istio/drop-invalid",
}

// caseNames are the few or, if DETOUR_KERNEL_CASES is "all", those that program something.
func caseNames(t *testing.T) []string {
	if os.Getenv("DETOUR_KERNEL_CASES") != "all" {
		return few
	}
	var all []string
	for _, c := range testcase.Load(t, root) {
		if c.Section("want.nft") != "" {
			all = append(all, c.Name)
		}
	}
	return all
}

// Each case, with each variant of each backend: where doctor finds everything, the kernel lists what was programmed, the packets end
// where they should, and removal leaves nothing. Where doctor finds something missing, programming fails and leaves nothing.
func TestEveryCaseIsAsDoctorSays(t *testing.T) {
	report := examine(t, "osm")
	lacking := map[string]bool{}
	for _, f := range report.Features {
		if !f.Present {
			lacking[fmt.Sprintf("%s lacks %s", f.Backend, f.Name)] = true
			t.Logf("@lacks %s %s %s: %s -> %s", f.Backend, f.Name, f.Family, f.Error, f.Do)
		}
	}
	for _, name := range caseNames(t) {
		c, rs, families := build(t, name)
		for _, v := range backend.Installed(t.Context()) {
			p, err := v.Prepare(rs, families)
			if err != nil { // iptables has nothing for a gate
				continue
			}
			t.Run(c.Name+"/"+p.Variant(), func(t *testing.T) {
				missing := report.Missing(p.Variant(), rs, families)
				for _, f := range missing {
					delete(lacking, fmt.Sprintf("%s lacks %s", f.Backend, f.Name))
				}
				start := time.Now()
				err := carryOut(t, c, p)
				switch {
				case err == nil && len(missing) > 0:
					t.Errorf("it works, but doctor says that it lacks %s", names(missing))
				case err != nil && len(missing) == 0:
					t.Errorf("doctor says that nothing is missing, but: %v", err)
				case err != nil:
					t.Logf("@fails %s %s: %v", c.Name, p.Variant(), err)
				}
				t.Logf("%s", time.Since(start))
			})
		}
	}
	for what := range lacking {
		t.Errorf("doctor says that %s, but no case fails for it", what)
	}
}

// carryOut programs a case in a world of its own and sends its packets.
func carryOut(t *testing.T, c testcase.Case, p *backend.Program) error {
	world := nettest.StartWorld(t)
	world.Timeout, world.Silence = time.Minute, 3*time.Second // an emulated machine is slow
	decided, err := c.Decide(t)
	if err != nil {
		t.Fatal(err)
	}
	var r attachment.Record
	p.Keep(&r)
	inside := func(fn func(ctx context.Context, lock *os.File) error) error {
		return testcase.Inside(t, world.Pod, fn)
	}
	failed := inside(func(ctx context.Context, lock *os.File) error { return p.Apply(ctx, lock) })
	if failed == nil {
		failed = inside(func(ctx context.Context, _ *os.File) error { return same(ctx, r) })
		c.CheckPackets(t, world, decided.Policy)
		if err := inside(func(ctx context.Context, lock *os.File) error { return backend.Remove(ctx, lock, r) }); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	checkNothingLeft(t, world.Pod)
	return failed
}

func same(ctx context.Context, r attachment.Record) error {
	found, err := backend.Differences(ctx, r)
	if len(found) > 0 {
		err = errors.Join(err, errors.New(strings.Join(found, "; ")))
	}
	return err
}

// checkNothingLeft looks with every program that the host has.
func checkNothingLeft(t *testing.T, ns *nettest.Namespace) {
	t.Helper()
	for program, args := range map[string][]string{
		"nft": {"list", "ruleset"}, "iptables-legacy-save": nil, "ip6tables-legacy-save": nil,
		"ip": {"rule", "show", "fwmark", "1337"},
	} {
		out, err := output(ns, program, args...)
		if err == nil && leftover(out) {
			t.Errorf("%s: left behind:\n%s", program, out)
		}
	}
}

// leftover reports whether a listing has rules, or chains of a mesh. iptables leaves its empty tables and base chains.
func leftover(listing string) bool {
	for _, sign := range []string{"table inet detour", "-A ", "PROXY", "ISTIO", "fwmark", "redirect", "dnat", "jump"} {
		if strings.Contains(listing, sign) {
			return true
		}
	}
	return false
}
