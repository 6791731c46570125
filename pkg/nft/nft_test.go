package nft

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }

func TestWorks(t *testing.T) {
	t.Parallel()
	ns := nettest.StartNamespace(t, "works")
	if err := ns.Do(Works); err != nil {
		t.Error(err)
	}
	err := ns.DoUnprivileged(Works)
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without capabilities: %v", err)
	}
	for errno, want := range map[unix.Errno]string{
		unix.EPROTONOSUPPORT: "CONFIG_NETFILTER_NETLINK", unix.EINVAL: "CONFIG_NF_TABLES", unix.EOPNOTSUPP: "CONFIG_NF_TABLES", unix.EIO: "input/output",
	} {
		if err := Explain(errno); !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}
