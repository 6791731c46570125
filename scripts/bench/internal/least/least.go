// Package least is what the floors share: a chained plugin that programs rules and prints prevResult. The rules are the netlink
// messages in the file DETOUR_BENCH_BATCH, or iptables-restore's in the files 4 and 6 of the folder DETOUR_BENCH_RULES. Without
// either variable nothing is programmed.
package least

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
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
		} else if folder := os.Getenv("DETOUR_BENCH_RULES"); folder != "" {
			if err := restoreBoth(args.Netns, folder); err != nil {
				return err
			}
		}
		return types.PrintResult(conf.PrevResult, conf.CNIVersion)
	}
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: nothing, Del: nothing}, version.All, about)
}

// commit sends the file's netlink messages as one batch in the namespace at path and waits for its only ack.
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
		return errors.New("the answer to the batch is not an ack")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return fmt.Errorf("the kernel refuses the batch: %w", unix.Errno(-code))
	}
	return nil
}

// openIn opens an nf_tables socket in the namespace at path.
func openIn(path string) (socket int, err error) {
	err = within(path, func() (err error) {
		socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	return socket, err
}

// within runs fn in the namespace at path and comes back, as skel demands.
func within(path string, fn func() error) error {
	runtime.LockOSThread() // to the end: the process is short
	own, err := netns.Get()
	if err != nil {
		return err
	}
	pod, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	if err := netns.Set(pod); err != nil {
		return err
	}
	return errors.Join(fn(), netns.Set(own))
}

func restoreBoth(path, folder string) error {
	return within(path, func() error {
		return errors.Join(restore("iptables-restore", folder+"/4"), restore("ip6tables-restore", folder+"/6"))
	})
}

func restore(program, file string) error {
	rules, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer rules.Close()
	cmd := exec.Command(program, "--noflush")
	cmd.Stdin, cmd.Stderr = rules, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}
