package conns

import (
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
				d := r.to(t, "10.0.0.6:7000")
				if d.Way != Swallowed || d.Reached != 3 || d.Sentence != "3 connections reached the proxy, none left it" {
					t.Errorf("7000: %+v", d)
				}
				d = r.to(t, "10.0.0.6:7003")
				if d.Way != Onward || d.Reached != 1 || len(d.Onward) != 1 || d.Sentence != "1 connection reached the proxy, 1 left it" {
					t.Errorf("7003: %+v", d)
				}
				if len(r.Destinations) != 2 || r.Destinations[0].To.Port() != 7000 {
					t.Errorf("swallowed destinations come first: %+v", r.Destinations)
				}
			})
		})
	}
}
