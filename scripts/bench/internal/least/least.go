// Package least is what the least plugins have in common: a chained plugin that prints prevResult and, before that, commits
// what is in the file that DETOUR_BENCH_BATCH names, if it names one.
package least

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Main is the plugin's main. ADD looks up first; CHECK and DEL do nothing.
func Main(about string, lookup func() error) {
	nothing := func(*skel.CmdArgs) error { return nil }
	add := func(args *skel.CmdArgs) error {
		var conf types.PluginConf
		if err := json.Unmarshal(args.StdinData, &conf); err != nil {
			return err
		}
		if err := version.ParsePrevResult(&conf); err != nil {
			return err
		}
		if err := lookup(); err != nil {
			return err
		}
		if file := os.Getenv("DETOUR_BENCH_BATCH"); file != "" {
			if err := commit(args.Netns, file); err != nil {
				return err
			}
		}
		return types.PrintResult(conf.PrevResult, conf.CNIVersion)
	}
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: nothing, Del: nothing}, version.All, about)
}

// commit sends the file's netlink messages as one batch in the namespace at path, and waits for the one ack that they ask for.
func commit(path, file string) error {
	batch, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	socket, err := openIn(path)
	if err != nil {
		return err
	}
	defer unix.Close(socket) //nolint:errcheck // nothing is left to do then
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(batch)); err != nil {
		return err
	}
	if err := unix.Sendto(socket, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send the batch: %w", err)
	}
	answer := make([]byte, os.Getpagesize())
	n, _, err := unix.Recvfrom(socket, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the answer to the batch is no ack")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("the batch is refused: %w", unix.Errno(-code))
	}
	return nil
}

// openIn opens a socket to nf_tables that stays in the namespace at path.
func openIn(path string) (socket int, err error) {
	runtime.LockOSThread() // to the end: the process is short
	own, err := netns.Get()
	if err != nil {
		return 0, err
	}
	pod, err := netns.GetFromPath(path)
	if err != nil {
		return 0, err
	}
	if err := netns.Set(pod); err != nil {
		return 0, err
	}
	socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	return socket, errors.Join(err, netns.Set(own))
}
