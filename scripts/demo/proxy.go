package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
	"github.com/detour-cni/detour/pkg/originaldst"
)

// proxyCommand is the argument with which this program, started once more, is the sidecar proxy.
const proxyCommand = "proxy"

const (
	readyLine  = "ready"
	relayTime  = 2 * time.Second
	mostRelays = 100 // at once: more than the demo makes connections
)

// proxyConfig configures the proxy. As JSON it is the proxy's other argument.
type proxyConfig struct {
	Outbound, Inbound uint16
	Transparent       bool // of the inbound listener: it gets connections that were not translated
	DNS               []netip.AddrPort
	OwnPorts          []uint16
}

// isProxy reports whether this process was started as the proxy.
func isProxy() bool { return len(os.Args) > 2 && os.Args[1] == proxyCommand }

// runProxy is the sidecar: it forwards what arrives at its two listeners to where it was going, and answers at its own
// ports. It runs until standard input ends: it neither outlives the demo nor, at a Ctrl-C that goes to both, ends before it.
func runProxy() int {
	signal.Ignore(stopSignals...)
	if err := serveProxy(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "proxy: "+err.Error())
		return 1
	}
	fmt.Println(readyLine)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func serveProxy(config string) error {
	var c proxyConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	var r relay
	errs := []error{listen(everywhere(c.Outbound), nil, r.through(c.Outbound, askOriginal))}
	if c.Transparent {
		errs = append(errs, listen(everywhere(c.Inbound), setTransparent, r.through(c.Inbound, askAsClient)))
	} else {
		errs = append(errs, listen(everywhere(c.Inbound), nil, r.through(c.Inbound, askInPod)))
	}
	for _, port := range c.OwnPorts {
		errs = append(errs, listen(everywhere(port), nil, answers(atProxy)))
	}
	for _, at := range c.DNS {
		_, err := listenUDP(at, atProxy)
		errs = append(errs, err, listen([]netip.AddrPort{at}, nil, answers(atProxy)))
	}
	return errors.Join(errs...)
}

// relay counts the connections that the proxy forwards at the moment.
type relay struct{ open atomic.Int64 }

// onwards forwards a connection that was going to original, and returns the answer.
type onwards func(conn *net.TCPConn, original netip.AddrPort) (string, error)

// through passes on the answer to a connection that arrives at port, and adds the proxy to it. If forwarding fails,
// the answer is the error.
func (r *relay) through(port uint16, next onwards) nettest.Banner {
	return func(conn *net.TCPConn) string {
		defer r.open.Add(-1)
		fail := func(format string, args ...any) string {
			return fmt.Sprintf("error: proxy %d: ", port) + fmt.Sprintf(format, args...)
		}
		if r.open.Add(1) > mostRelays {
			return fail("its own connections come back to it")
		}
		original, err := originalDst(conn, port)
		if err != nil {
			return fail("%v", err)
		}
		answer, err := next(conn, original)
		if err != nil {
			return fail("original %s: %v", original, err)
		}
		if strings.HasPrefix(answer, "error: ") {
			return answer
		}
		return relayed(answer, port, original)
	}
}

// originalDst is where a connection to the listener at port was going. By TPROXY it arrives untranslated at that address.
func originalDst(conn *net.TCPConn, port uint16) (netip.AddrPort, error) {
	here := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	if here.Port() != port {
		return here, nil
	}
	original, err := originaldst.Of(conn)
	if err == nil && original == here {
		err = errors.New("dialed directly")
	}
	return original, err
}
