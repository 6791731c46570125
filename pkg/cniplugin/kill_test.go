package cniplugin_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/faults"
	"github.com/detour-cni/detour/pkg/rules"
)

// Killed at any of its calls, the next ADD ends in exactly the right state: with three tables, routes and an address, in namespaces
// that keep what earlier kills left. `make faults` does it for every call, with other rules.
func TestAddAfterAKillAtAnyCallProgramsExactlyTheRules(t *testing.T) {
	const rounds = 50
	for _, backend := range []string{"iptables", "nftables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			a := newIstio(t, tproxy)
			a.conf["backend"] = backend
			whole := a.calls("ADD")
			want := a.programmed()
			for i := range rounds {
				if i%2 == 0 {
					a.must("DEL") // half of the kills meet a fresh namespace
				}
				at := a.killed("ADD", 1+i*whole/rounds)
				a.must("ADD")
				if got := a.programmed(); got != want {
					t.Fatalf("killed before %s: got %s, want %s", at, got, want)
				}
				a.must("CHECK")
			}
		})
	}
}

// The same for an ADD that decides otherwise than the one before: what comes next, another ADD or DEL, mends it.
func TestAKilledAddThatDecidedOtherwiseIsMended(t *testing.T) {
	const rounds = 25
	all := decisions("iptables", "nftables")
	want := alone(t, os.Getenv("PATH"), all)
	for worker := range 4 {
		t.Run(fmt.Sprint("worker ", worker+1), func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, "")
			for range rounds {
				first, second := rand.IntN(len(all)), rand.IntN(len(all))
				a.decide(all[first])
				whole := a.calls("ADD")
				a.decide(all[second])
				at := a.killed("ADD", 1+rand.IntN(2*whole)) // the second has more to do
				what := fmt.Sprintf("%s, then %s is killed before %s, then ", all[first].name, all[second].name, at)
				if rand.IntN(2) == 0 {
					a.must("ADD")
					a.same(what+"ADD", want[second])
					a.must("CHECK")
				}
				a.must("DEL")
				a.same(what+"DEL", a.nothing())
				if t.Failed() {
					lines := a.logged()
					t.Fatalf("the log ends with %v", lines[max(0, len(lines)-4):])
				}
			}
			a.empty()
		})
	}
}

// Another interface's ADD that is killed leaves a namespace that its DEL puts in order for the first.
func TestAKilledAddOfAnotherInterfaceIsMended(t *testing.T) {
	const rounds = 20
	eachBackend(t, func(t *testing.T, eth0 *attachment) {
		eth0.conf["prevResult"] = prevResult("10.77.0.2/24")
		net1 := eth0.another("net1", "fd99::2/64")
		for i := range rounds {
			net1.conf["backend"] = []string{"iptables", "nftables"}[i%2]
			eth0.must("ADD")
			whole := net1.calls("ADD")
			net1.must("DEL")
			eth0.must("DEL")
			eth0.must("ADD")
			net1.killed("ADD", 1+i*whole/rounds)
			net1.must("DEL")
			eth0.must("CHECK")
			if held := eth0.holds(); !strings.Contains(held, "PROXY_OUTPUT") {
				t.Fatalf("the namespace holds %s", held)
			}
			eth0.must("DEL")
			eth0.same("round "+fmt.Sprint(i), eth0.nothing())
		}
		eth0.empty()
	})
}

// programmed is all that the kernel has of any backend.
func (a *attachment) programmed() string {
	if a.conf["backend"] == "nftables" {
		return fmt.Sprintf("%q, %s", slices.Concat(a.rules(rules.IPv4), a.rules(rules.IPv6)), a.table())
	}
	return fmt.Sprintf("%q, %q", a.rules(rules.IPv4), a.rules(rules.IPv6))
}

// calls runs a verb that must succeed, and counts its system calls.
func (a *attachment) calls(verb string) int {
	a.t.Helper()
	calls, err := faults.Record(a.command(verb))
	if err != nil {
		a.t.Fatalf("%s: %v", verb, err)
	}
	return len(calls)
}

// killed kills a verb, and not what it has started, before its call n. It returns the call, or nil if there are fewer.
func (a *attachment) killed(verb string, n int) *faults.Call {
	a.t.Helper()
	r, err := faults.Run(a.command(verb), faults.KillBefore(n, faults.Program))
	if err != nil {
		a.t.Fatal(err)
	}
	return r.Struck
}

// What a killed plugin left running may still write; the next ADD waits for it, and so sees what it wrote.
func TestAddWaitsForWhatAKilledAddLeftRunning(t *testing.T) {
	t.Parallel()
	a, clean := newAttachment(t, meshedPod(), meshConfig), newAttachment(t, meshedPod(), meshConfig)
	clean.must("ADD")
	path, started := os.Getenv("PATH"), a.path("started")
	a.env["PATH"] = slowRestore(t, started) + ":" + path
	cmd := a.command("ADD")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, err := os.Stat(started); err != nil; _, err = os.Stat(started) {
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	a.env["PATH"] = path
	a.must("ADD")
	time.Sleep(2 * lateness) // whatever is late has happened by now
	for _, f := range rules.Families {
		if got, want := a.rules(f), clean.rules(f); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", f, got, want)
		}
	}
}

const lateness = 300 * time.Millisecond

// slowRestore is a folder whose iptables-restore has a child that survives it and programs late.
func slowRestore(t *testing.T, started string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft-restore", "iptables-legacy-restore"} {
		real, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if real, err = filepath.EvalSymlinks(filepath.Dir(real)); err != nil {
			t.Fatal(err)
		}
		script := fmt.Sprintf("#!/bin/sh\ncat >%[1]s.input\n(touch %[1]s; sleep %[2]f; exec %[3]s/%[4]s --noflush <%[1]s.input) &\nwait\n", started, lateness.Seconds(), real, name)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
