package repair

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/detour-cni/detour/pkg/agent/agenttest"
	"github.com/detour-cni/detour/pkg/nettest"
)

// The same namespace may be mounted twice, and a part of the addresses is not enough.
func TestTheNamespaceIsFoundByAllAddresses(t *testing.T) {
	t.Parallel()
	w := nettest.StartWorld(t)
	dir := agenttest.RuntimeDir(t, w.Pod.Path())
	if err := os.Symlink(w.Pod.Path(), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	ns, where, err := openNamespaceOf(dir, []netip.Addr{nettest.PodIPv6})
	if err != nil || where.link != nettest.PodLink {
		t.Fatalf("%v %v", where, err)
	}
	ns.Close()
	if ns, _, err := openNamespaceOf(dir, []netip.Addr{nettest.PodIPv4, netip.MustParseAddr("10.9.9.9")}); err == nil {
		ns.Close()
		t.Error("found by a part of the addresses")
	}
	if _, _, err := openNamespaceOf("/nonexistent", []netip.Addr{nettest.PodIPv4}); err == nil {
		t.Error("no error for a folder that is not there")
	}
}
