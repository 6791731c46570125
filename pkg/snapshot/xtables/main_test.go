package xtables

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/rules"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

// variants of iptables.
var variants = []string{"nft", "legacy"}

// program is the name of a program of the family and variant, such as iptables-nft-save.
func program(f rules.Family, variant, suffix string) string {
	if f == rules.IPv6 {
		return "ip6tables-" + variant + suffix
	}
	return "iptables-" + variant + suffix
}

// run runs a program in the namespace.
func run(t testing.TB, ns *nettest.Namespace, input, name string, args ...string) (string, error) {
	t.Helper()
	nettest.RequireProgram(t, name)
	var out, failed strings.Builder
	err := ns.Do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE=/proc/self/stat")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &failed
		return cmd.Run()
	})
	if err != nil {
		return failed.String(), err
	}
	return out.String(), nil
}

func mustRun(t testing.TB, ns *nettest.Namespace, input, name string, args ...string) string {
	t.Helper()
	out, err := run(t, ns, input, name, args...)
	if err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
	return out
}

// The subsystem of the kernel's packet counters, its message that makes one, and the attribute with the name.
const (
	newCounter  = unix.NFNL_SUBSYS_ACCT << 8
	counterName = 1
)

// addCounter makes a counter for match nfacct, as kube-proxy does.
func addCounter(t testing.TB, ns *nettest.Namespace, name string) {
	t.Helper()
	err := ns.Do(func() error {
		c, err := netlink.Open(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer c.Close()
		header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}
		return c.Ask(newCounter, unix.NLM_F_CREATE|unix.NLM_F_ACK, header, func([]byte) {}, netlink.Text(counterName, name))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// save reads the tables of a namespace.
func save(t testing.TB, ns *nettest.Namespace, f rules.Family) Tables {
	t.Helper()
	var tables Tables
	err := ns.Do(func() (err error) {
		tables, err = Save(f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// text is that of one variant.
func (t Tables) text(variant string) string {
	if variant == "nft" {
		return t.Nft
	}
	return t.Legacy
}

// equal compares our text with iptables-save's, apart from its comments.
func equal(t testing.TB, ns *nettest.Namespace, f rules.Family, variant string) bool {
	t.Helper()
	want := withoutComments(mustRun(t, ns, "", program(f, variant, "-save"), "-c"))
	got := save(t, ns, f).text(variant)
	if got == want {
		return true
	}
	wanted, have := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(wanted), len(have)) {
		if wanted[i] != have[i] {
			t.Errorf("%s, line %d:\n%s\nnot\n%s", program(f, variant, "-save"), i+1, have[i], wanted[i])
			return false
		}
	}
	t.Errorf("%s: %d lines, not %d:\n%s\nnot\n%s", program(f, variant, "-save"), len(have), len(wanted), got, want)
	return false
}

func withoutComments(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if line[0] != '#' {
			kept.WriteString(line)
		}
	}
	return kept.String()
}
