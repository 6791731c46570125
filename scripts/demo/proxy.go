package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/detour-cni/detour/pkg/nettest"
)

// proxyCommand is the argument with which this program, started once more, is the sidecar proxy.
const proxyCommand = "proxy"

// proxyUID is the user as whom the proxy runs, and by whom the rules know it.
const proxyUID = 1500

const (
	readyLine  = "ready"
	relayTime  = 2 * time.Second
	closeTime  = 2 * time.Second
	mostRelays = 100 // at once: more than the demo makes connections
)

// isProxy reports whether this process was started as the proxy.
func isProxy() bool { return len(os.Args) > 1 && os.Args[1] == proxyCommand }

// runProxy is the sidecar: it forwards what arrives at its two listeners to where it was going, and answers at its own
// ports, which are its arguments. It runs until standard input ends: it neither outlives the demo nor, at a Ctrl-C that goes
// to both, ends before it.
func runProxy() int {
	signal.Ignore(stopSignals...)
	if err := serveProxy(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "proxy: "+err.Error())
		return 1
	}
	fmt.Println(readyLine)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func serveProxy(ownPorts []string) error {
	var r relay
	errs := []error{
		listen(outboundPort, func(conn *net.TCPConn) string {
			return r.forward(conn, func(original netip.AddrPort) netip.AddrPort { return original })
		}),
		listen(inboundPort, func(conn *net.TCPConn) string { return r.forward(conn, inPod) }),
	}
	for _, text := range ownPorts {
		port, err := strconv.ParseUint(text, 10, 16)
		errs = append(errs, err, listen(uint16(port), answers(atProxy)))
	}
	return errors.Join(errs...)
}

// answers is the banner of whoever ends a connection: NAME and the address at which it arrived.
func answers(name string) nettest.Banner {
	return func(conn *net.TCPConn) string { return fmt.Sprintf("%s %s", name, conn.LocalAddr()) }
}

// listen answers each connection to port, of both families, with one line. It stops with the process.
func listen(port uint16, banner nettest.Banner) error {
	for _, address := range []struct{ network, host string }{{"tcp4", "0.0.0.0"}, {"tcp6", "[::]"}} {
		socket, err := net.Listen(address.network, fmt.Sprintf("%s:%d", address.host, port))
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := socket.Accept()
				if err != nil {
					return
				}
				go answerOne(conn.(*net.TCPConn), banner)
			}
		}()
	}
	return nil
}

func answerOne(conn *net.TCPConn, banner nettest.Banner) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * relayTime))
	fmt.Fprintln(conn, banner(conn))
}

// relay counts the connections that the proxy forwards at the moment.
type relay struct{ open atomic.Int64 }

// forward passes on the answer from where the connection was going, which target may change, and adds the proxy to it.
// What goes wrong is an answer too.
func (r *relay) forward(conn *net.TCPConn, target func(netip.AddrPort) netip.AddrPort) string {
	defer r.open.Add(-1)
	here := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	fail := func(format string, args ...any) string {
		return fmt.Sprintf("error: proxy %d: ", here.Port()) + fmt.Sprintf(format, args...)
	}
	if r.open.Add(1) > mostRelays {
		return fail("its own connections come back to it")
	}
	original, err := nettest.OriginalDst(conn)
	if err != nil {
		return fail("%v", err)
	}
	if original == here {
		return fail("dialed directly")
	}
	answer, err := ask(target(original))
	if err != nil {
		return fail("original %s: %v", original, err)
	}
	if strings.HasPrefix(answer, "error: ") {
		return answer
	}
	return relayed(answer, here.Port(), original)
}

// ask dials as the user that this process runs as and reads a line.
func ask(addr netip.AddrPort) (string, error) {
	conn, err := net.DialTimeout("tcp", addr.String(), relayTime)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(relayTime))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// proxyProcess is a running proxy.
type proxyProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startProxy starts this program as the proxy in the namespace, as the user uid, and waits until it listens.
func startProxy(ns *nettest.Namespace, uid uint32, ownPorts []uint16) (*proxyProcess, error) {
	// The path leads nowhere else for a user who may not enter the folder that holds the program.
	cmd := exec.Command("/proc/self/exe", proxyCommand)
	for _, port := range ownPorts {
		cmd.Args = append(cmd.Args, strconv.Itoa(int(port)))
	}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &proxyProcess{cmd, stdin}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != readyLine {
		return nil, errors.Join(fmt.Errorf("start proxy: it said %q and not that it is ready", line), p.Close())
	}
	return p, nil
}

// Close ends the proxy.
func (p *proxyProcess) Close() error {
	p.stdin.Close()
	killer := time.AfterFunc(closeTime, func() { _ = p.cmd.Process.Kill() })
	defer killer.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("end proxy: %w", err)
	}
	return nil
}
