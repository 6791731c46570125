// Command floorrestore is the least that a plugin with iptables could do: it gives iptables-restore, in the pod's network
// namespace, the rules of the files 4 and 6 in the folder DETOUR_BENCH_RULES, as far as they are there, and prints prevResult.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"

	"github.com/detour-cni/detour/scripts/bench/internal/least"
)

func main() { least.Main("floorrestore", restoreBoth) }

// restoreBoth goes into the namespace and comes back, as skel wants it.
func restoreBoth() error {
	runtime.LockOSThread() // to the end: the process is short
	own, err := netns.Get()
	if err != nil {
		return err
	}
	pod, err := netns.GetFromPath(os.Getenv("CNI_NETNS"))
	if err != nil {
		return err
	}
	if err := netns.Set(pod); err != nil {
		return err
	}
	return errors.Join(restore("iptables-restore", "4"), restore("ip6tables-restore", "6"), netns.Set(own))
}

func restore(program, file string) error {
	rules, err := os.Open(filepath.Join(os.Getenv("DETOUR_BENCH_RULES"), file))
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
