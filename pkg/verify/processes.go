package verify

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/detour-cni/detour/pkg/sockets"
)

// process is a process of the pod.
type process struct {
	sockets.Process
	container string // the ID in its control group's path, "" if there is none
}

// processes reads the processes, as sockets.Processes does.
func processes(proc string, pids []int) (all []process, seen bool) {
	read, seen := sockets.Processes(proc, pids)
	for _, p := range read {
		cgroup, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(p.PID), "cgroup"))
		all = append(all, process{p, containerOf(string(cgroup))})
	}
	return all, seen
}

// containerOf returns the innermost container's ID in /proc/PID/cgroup: 64 hexadecimal digits, behind the runtime's name with
// the systemd driver.
func containerOf(cgroup string) (id string) {
	for folder := range strings.FieldsFuncSeq(cgroup, func(r rune) bool { return strings.ContainsRune("/\n-.", r) }) {
		if len(folder) == 64 && strings.Trim(folder, "0123456789abcdef") == "" {
			id = folder
		}
	}
	return id
}

// listening returns the process that has the socket open, the oldest if there are several.
func listening(all []process, s sockets.Socket) (process, bool) {
	i := slices.IndexFunc(all, func(p process) bool { return slices.Contains(p.Sockets, s.Inode) })
	if i < 0 {
		return process{}, false
	}
	return all[i], true
}

func (p process) String() string { return fmt.Sprintf("%s (PID %d)", p.Name, p.PID) }
