package conns

import (
	"fmt"
	"net/netip"
	"testing"
)

// swallow is a route that passes everything on but connections to port 7000.
func swallow(to netip.AddrPort) netip.AddrPort {
	if to.Port() == 7000 {
		return netip.AddrPort{}
	}
	return to
}

func TestTheProxySwallowsOnePortOfRedis(t *testing.T) {
	for _, mesh := range []string{"istio/defaults", "osm/defaults"} {
		t.Run(mesh, func(t *testing.T) {
			forBoth(t, mesh, func(s *scene) {
				s.serve(7000, 7003)
				s.relay(swallow)
				for range 3 {
					s.ask(s.app, "10.0.0.6:7000", "HTTP/1.1 400 Bad Request\r")
				}
				s.ask(s.app, "10.0.0.6:7003", "server 7003")
				r := s.judge()
				for _, c := range r.Connections { fmt.Println(c.Original, c.Reply, c.State, c.Way, c.Why, c.Inferred, c.Owner, c.Idle) }
				for _, d := range r.Destinations { fmt.Println(d.To, d.Way, d.Sentence, d.Why, d.Advice) }
				fmt.Printf("%+v\n", r.Proxy)
			})
		})
	}
}
