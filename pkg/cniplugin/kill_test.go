package cniplugin_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/detour-cni/detour/pkg/rules"
)

// Killed at any moment, the next ADD ends in exactly the right state: 200 times, each somewhere in the time that a whole
// ADD takes, in namespaces that keep what earlier kills left.
func TestAddAfterAKillAtAnyMomentProgramsExactlyTheRules(t *testing.T) {
	const workers, rounds = 4, 50
	for range workers {
		t.Run("worker", func(t *testing.T) {
			t.Parallel()
			a := newAttachment(t, meshedPod(), meshConfig)
			began := time.Now()
			a.must("ADD")
			whole := time.Since(began)
			four, six := a.rules(rules.IPv4), a.rules(rules.IPv6)
			for range rounds {
				if rand.IntN(2) == 0 {
					a.must("DEL") // half of the kills meet a fresh namespace
				}
				a.killed("ADD", rand.N(whole))
				a.must("ADD")
				if got := a.rules(rules.IPv4); !slices.Equal(got, four) {
					t.Fatalf("IPv4: got %q, want %q", got, four)
				}
				if got := a.rules(rules.IPv6); !slices.Equal(got, six) {
					t.Fatalf("IPv6: got %q, want %q", got, six)
				}
				a.must("CHECK")
			}
		})
	}
}

// killed starts a verb and kills it after a while, if it is not done by then.
func (a *attachment) killed(verb string, after time.Duration) {
	a.t.Helper()
	cmd := a.command(verb)
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	time.Sleep(after)
	_ = cmd.Process.Kill() // it may be done
	_ = cmd.Wait()
}
