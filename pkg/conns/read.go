package conns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/netlink"
	"github.com/detour-cni/detour/pkg/netns"
)

// Snapshot is what a network namespace knows of its connections at one moment.
type Snapshot struct {
	flows     []Flow
	sockets   ends
	addresses []netip.Addr
	timeouts  map[string]uint32 // in seconds, by the state of TCP
	processes processes
}

// Read takes a snapshot. It needs CAP_NET_ADMIN in the namespace. Processes are found only where /proc shows them and the caller
// may read them.
func Read(ns *netns.Pod) (Snapshot, error) {
	var s Snapshot
	err := ns.Do(func() (err error) {
		// The sockets come last: an entry without a socket is one that was closed, never one that was too new.
		if s.timeouts, err = readTimeouts(); err != nil {
			return err
		}
		if s.addresses, err = readAddresses(); err != nil {
			return err
		}
		if s.flows, err = readFlows(); err != nil {
			return err
		}
		s.sockets, err = readSockets()
		return err
	})
	if err != nil {
		return Snapshot{}, err
	}
	s.processes, err = readProcesses(ns)
	return s, err
}

// attempts bounds how often a list is read again that changed meanwhile. The last is used as it is.
const attempts = 3

func dump(c *netlink.Conn, kind int, body []byte, each func([]byte)) error {
	var err error
	for range attempts {
		if err = c.Ask(kind, unix.NLM_F_DUMP, body, each); !errors.Is(err, netlink.ErrChanged) {
			return err
		}
	}
	return nil
}

const getFlows = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET

func readFlows() ([]Flow, error) {
	c, err := netlink.Open(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	all := map[flowKey]Flow{}
	err = dump(c, getFlows, []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}, func(body []byte) {
		if f, ok := parseFlow(body); ok {
			all[f.key()] = f
		}
	})
	if errors.Is(err, unix.EPERM) {
		return nil, errors.New("list connections: the kernel refuses: CAP_NET_ADMIN is needed, run it as root")
	}
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return slices.Collect(maps.Values(all)), nil
}

// readTimeouts reads for how long connection tracking of this namespace remembers a connection in each state.
func readTimeouts() (map[string]uint32, error) {
	all := map[string]uint32{}
	for _, state := range tcpStates[1:] {
		name := strings.ToLower(strings.TrimSuffix(state, "2"))
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_" + name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("the kernel tracks no connections: its module nf_conntrack is not loaded")
		}
		if err != nil {
			return nil, fmt.Errorf("read how long connections are remembered: %w", err)
		}
		seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read how long connections are remembered: %w", err)
		}
		all[state] = uint32(seconds)
	}
	return all, nil
}

func readAddresses() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	var all []netip.Addr
	for _, n := range nets {
		if prefix, err := netip.ParsePrefix(n.String()); err == nil {
			all = append(all, prefix.Addr())
		}
	}
	return all, nil
}

// local reports whether packets to the address stay in the namespace.
func (s Snapshot) local(a netip.Addr) bool {
	return a.IsLoopback() || slices.Contains(s.addresses, a.WithZone(""))
}

// Dialer connects from within the namespace, to a literal address.
func Dialer(ns *netns.Pod) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func() error {
			// With one literal address the dialer starts no goroutine, which would be on a thread of another namespace.
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}
