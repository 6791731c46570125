package conns

import (
	"fmt"
	"slices"

	"github.com/detour-cni/detour/pkg/netns"
	"github.com/detour-cni/detour/pkg/podns"
	"github.com/detour-cni/detour/pkg/sockets"
)

// processes are the holders of sockets, by the sockets' inodes.
type processes map[uint32]sockets.Process

// readProcesses finds the holders of sockets of the namespace, as far as /proc shows them to this process.
func readProcesses(ns *netns.Pod) (processes, error) {
	id, err := ns.ID()
	if err != nil {
		return nil, fmt.Errorf("find the pod's processes: %w", err)
	}
	pids, err := podns.Finder{}.In(id)
	if err != nil {
		return nil, fmt.Errorf("find the pod's processes: %w", err)
	}
	all, _ := sockets.Processes("/proc", pids)
	return holders(all), nil
}

// holders returns who holds each socket: the first, if there are several.
func holders(all []sockets.Process) processes {
	found := processes{}
	for _, p := range slices.Backward(all) {
		for _, inode := range p.Sockets {
			found[inode] = p
		}
	}
	return found
}
