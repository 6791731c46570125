package conns

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/netns"
)

// process is one that holds sockets of the namespace.
type process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
	gid  uint32 // with which it creates files and sockets
}

// processes are the holders of sockets, by the sockets' inodes.
type processes map[uint32]process

// readProcesses finds the holders of sockets of the namespace, as far as /proc shows them to this process.
func readProcesses(ns *netns.Pod) (processes, error) {
	var own os.FileInfo
	err := ns.Do(func() (err error) {
		own, err = os.Stat("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the pod's processes: %w", err)
	}
	found := processes{}
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, fmt.Errorf("find the pod's processes: %w", err)
	}
	for _, folder := range folders {
		if its, err := os.Stat(filepath.Join(folder, "ns/net")); err == nil && os.SameFile(own, its) {
			found.add(folder)
		}
	}
	return found, nil
}

// add adds the sockets of one process. A process that ends meanwhile has none.
func (p processes) add(folder string) {
	pid, err := strconv.Atoi(filepath.Base(folder))
	if err != nil {
		return
	}
	name, _ := os.ReadFile(filepath.Join(folder, "comm"))
	holder := process{PID: pid, Name: strings.TrimSpace(string(name)), gid: fileGID(folder)}
	files, err := os.ReadDir(filepath.Join(folder, "fd"))
	if err != nil {
		return
	}
	for _, f := range files {
		target, err := os.Readlink(filepath.Join(folder, "fd", f.Name()))
		inode, isSocket := strings.CutPrefix(strings.TrimSuffix(target, "]"), "socket:[")
		if err != nil || !isSocket {
			continue
		}
		if n, err := strconv.ParseUint(inode, 10, 32); err == nil {
			p[uint32(n)] = holder
		}
	}
}

// noGID is what no process has.
const noGID = 1<<32 - 1

// fileGID reads the GID that the kernel's owner match compares: the last of the four in /proc/PID/status.
func fileGID(folder string) uint32 {
	status, _ := os.ReadFile(filepath.Join(folder, "status"))
	for line := range bytes.Lines(status) {
		fields := strings.Fields(string(line))
		if len(fields) != 5 || fields[0] != "Gid:" {
			continue
		}
		if gid, err := strconv.ParseUint(fields[4], 10, 32); err == nil {
			return uint32(gid)
		}
	}
	return noGID
}
