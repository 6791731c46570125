package nftables

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/nft"
	"github.com/detour-cni/detour/pkg/rules"
)

// A thread that waits gives its processor away, and the kernel counts that. It may do so for other reasons in some rounds;
// if it waits for the kernel, it does in all.
func TestClosingAfterADeletionDoesNotWait(t *testing.T) {
	t.Parallel()
	skipBefore(t, 6, 9)
	table := Compile(policy(nil).Ruleset(), rules.Families)
	for name, remove := range map[string]func(nft.Conn) error{
		"Remove":       func(c nft.Conn) error { return c.Commit(removal()) },
		"a second ADD": func(c nft.Conn) error { return c.Commit(table.transaction(state{exists: true})) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := nettest.StartNamespace(t, "close")
			within(t, ns, func() error {
				const rounds = 100
				for range rounds {
					if waits, err := waitsToClose(table, remove); waits == 0 || err != nil {
						return err
					}
				}
				return fmt.Errorf("closing the socket waits, %d times of %d", rounds, rounds)
			})
		})
	}
}

// waitsToClose is how often the closing of a socket that deleted the table gives the processor away. It must run on a
// thread of its own.
func waitsToClose(table Table, remove func(nft.Conn) error) (int64, error) {
	if err := Apply(table); err != nil {
		return 0, err
	}
	c, err := nft.Open()
	if err != nil {
		return 0, err
	}
	var before, after unix.Rusage
	err = errors.Join(remove(c), unix.Getrusage(unix.RUSAGE_THREAD, &before))
	c.Close()
	err = errors.Join(err, unix.Getrusage(unix.RUSAGE_THREAD, &after))
	return after.Nvcsw - before.Nvcsw, err
}

func skipBefore(t *testing.T, major, minor int) {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var haveMajor, haveMinor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &haveMajor, &haveMinor); err != nil {
		t.Fatal(err)
	}
	if haveMajor < major || haveMajor == major && haveMinor < minor {
		t.Skipf("Linux %s may collect sockets within the close", release)
	}
}

// A process that goes on for long, as the agent does, has as many descriptors and the kernel as many sockets as before.
func TestNothingIsLeftOfSocketsThatDeleted(t *testing.T) { // not beside others, who have descriptors too
	ns := nettest.StartNamespace(t, "sockets")
	table := Compile(policy(nil).Ruleset(), rules.Families)
	count := func() (n counts) {
		within(t, ns, func() (err error) {
			n, err = countSockets()
			return err
		})
		return n
	}
	before := count()
	for range 100 {
		within(t, ns, func() error { return errors.Join(Apply(table), Apply(table), Remove()) })
	}
	var after counts
	for range 600 {
		if after = count(); after == before {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("there are %+v, not %+v", after, before)
}

// counts are the process's descriptors and the namespace's sockets.
type counts struct{ descriptors, netlink, unix int }

func countSockets() (counts, error) {
	descriptors, err := os.ReadDir("/proc/self/fd")
	netlinks, err1 := os.ReadFile("/proc/thread-self/net/netlink")
	unixes, err2 := os.ReadFile("/proc/thread-self/net/unix")
	lines := func(b []byte) int { return strings.Count(string(b), "\n") }
	return counts{len(descriptors), lines(netlinks), lines(unixes)}, errors.Join(err, err1, err2)
}
