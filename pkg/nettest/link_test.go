package nettest

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A datagram that comes before the kernel has made the route to a new address is lost, and nobody sends it again.
func TestAWorldTakesPacketsFromItsFirstMoment(t *testing.T) {
	t.Parallel()
	for range 20 {
		w := StartWorld(t)
		for ns, addr := range map[*Namespace]string{w.Pod: PodIPv6.String() + "/128", w.Outside: OutsideIPv6.String() + "/128"} {
			err := ns.Do(func() error {
				dst, err := netlink.ParseIPNet(addr)
				if err != nil {
					return err
				}
				routes, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: dst}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
				if len(routes) == 0 {
					err = errors.Join(err, errors.New("there is no local route to "+addr))
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}
