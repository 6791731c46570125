package nettest

import (
	"net"
	"net/netip"

	"github.com/detour-cni/detour/pkg/originaldst"
)

// Relay is the banner of a sidecar proxy at a port that passes connections on: route says where to, given where the client wanted
// to go. The answer is that of the server, or, if route returns the zero address, an HTTP server's to what is not HTTP. Only
// redirection gets a connection to the proxy, not TPROXY.
func (p Process) Relay(route func(original netip.AddrPort) netip.AddrPort) Banner {
	return func(conn *net.TCPConn) string {
		original, err := originaldst.Of(conn)
		if err != nil {
			return err.Error()
		}
		to := route(original)
		if !to.IsValid() {
			return "HTTP/1.1 400 Bad Request\r"
		}
		answer, err := p.Ask(Call{Destination: to})
		if err != nil {
			return err.Error()
		}
		return answer
	}
}
