//go:build faults

package cniplugin_test

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/detour-cni/detour/pkg/faults"
)

// The hosts. What differs with the API server is the lookup, so each backend of iptables has it in part.
var hosts = []host{
	{"nftables", "agent"}, {"nftables", "API server"},
	{"iptables-nft", "agent"}, {"iptables-nft", "API server"},
	{"iptables-legacy", "agent"}, {"iptables-legacy", "API server"},
}

// number is an environment variable's.
func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// stride leaves calls out, to try a change.
var stride = number("FAULTS_STRIDE", 1)

var kills, failures atomic.Int64

// Killed before any of its calls, whatever the runtime does next ends in exactly the right state. ROUNDS (1) times, each time
// with another victim and another next step at each call, and with other calls of the children.
func TestKilledAtEveryCall(t *testing.T) {
	t.Cleanup(func() { fmt.Printf("%d kills\n", kills.Load()) })
	for _, h := range hosts {
		for _, g := range stages {
			if h.source != "agent" && g.verb != "ADD" {
				continue // the others look nothing up
			}
			t.Run(h.String()+"/"+g.name, func(t *testing.T) {
				t.Parallel()
				s := newStruck(t, h)
				for round := range number("ROUNDS", 1) {
					for call := (&faults.Call{}); ; kills.Add(1) {
						call = s.kill(t, g, call.N+stride, round)
						if call == nil || h.source != "agent" && lookedUp(*call) {
							break
						}
					}
				}
			})
		}
	}
}

// Each call fails once with each plausible errno: the rules are right, or an error says why not and nothing is left. A call of a
// child fails with one of its errnos, another in each of ROUNDS (1).
func TestEveryCallFails(t *testing.T) {
	t.Cleanup(func() { fmt.Printf("%d failed calls\n", failures.Load()) })
	for _, h := range hosts {
		for i, f := range failings {
			if h.source != "agent" && f.verb != "ADD" {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s %d", h, f.verb, i+1), func(t *testing.T) {
				t.Parallel()
				s := newStruck(t, h)
				for round := range number("ROUNDS", 1) {
					for call := (&faults.Call{}); call != nil; {
						call = s.failAll(t, h, f, call.N+stride, round)
					}
				}
			})
		}
	}
}

// failAll fails call n, or one after it, with all its errnos, or with one if a child makes it. It returns the call, nil at the end.
func (s *struck) failAll(t *testing.T, h host, f failing, n, round int) *faults.Call {
	first, plausible := s.fail(t, f, n, n+round, round)
	for k := 1; k < plausible && !first.Child; k++ {
		s.fail(t, f, first.N, n+round+k, round)
	}
	switch {
	case first == nil || h.source != "agent" && lookedUp(*first):
		return nil
	case first.Child:
		plausible = 1
	}
	failures.Add(int64(plausible))
	return first
}

// lookedUp reports whether the call comes after the lookup: ADD enters the namespace.
func lookedUp(c faults.Call) bool { return c.Name == "setns" }
