package podns

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a process of the node.
type process struct {
	pid    int
	netns  string   // its network namespace's ID, "" if unknown
	pods   []string // the UIDs in its control group's path, as normal returns them
	denied bool     // its namespace may not be looked at
}

func (p process) of(uid string) bool { return uid != "" && slices.Contains(p.pods, normal(uid)) }

// processes returns all processes by PID. It leaves out those that end meanwhile.
func (f Finder) processes() ([]process, error) {
	entries, err := os.ReadDir(f.Proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cgroup, err := os.ReadFile(filepath.Join(f.Proc, e.Name(), "cgroup"))
		if err != nil {
			continue
		}
		netns, err := identify(f.netns(pid))
		all = append(all, process{pid, netns, podsOf(string(cgroup)), errors.Is(err, fs.ErrPermission)})
	}
	slices.SortFunc(all, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return all, nil
}

// first returns the pod's oldest process, usually the one that holds its namespaces. Later ones may have made namespaces of
// their own.
func (f Finder) first(uid string, all []process) (process, error) {
	ofPod := slices.DeleteFunc(slices.Clone(all), func(p process) bool { return !p.of(uid) })
	seen := slices.DeleteFunc(slices.Clone(ofPod), func(p process) bool { return p.netns == "" })
	if len(seen) > 0 {
		return slices.MinFunc(seen, func(a, b process) int { return cmp.Compare(f.started(a.pid), f.started(b.pid)) }), nil
	}
	if i := slices.IndexFunc(ofPod, func(p process) bool { return p.denied }); i >= 0 {
		return process{}, fmt.Errorf("look at the network namespace of process %d: %w: run this as root",
			ofPod[i].pid, fs.ErrPermission)
	}
	return process{}, ErrGone
}

// uidIn returns the UID of the pod whose namespace it is, or "" if no control group tells.
func uidIn(netns string, all []process) string {
	i := slices.IndexFunc(all, func(p process) bool { return netns != "" && p.netns == netns && len(p.pods) > 0 })
	if i < 0 {
		return ""
	}
	return all[i].pods[0]
}

// started is when the process started, in clock ticks since boot: field 22 of its stat file (proc_pid_stat(5)). The second field
// may hold anything in parentheses.
func (f Finder) started(pid int) uint64 {
	stat, _ := os.ReadFile(filepath.Join(f.Proc, strconv.Itoa(pid), "stat"))
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return math.MaxUint64
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return math.MaxUint64
	}
	return ticks
}

// podsOf returns the pod UIDs in /proc/PID/cgroup. With the kubelet's cgroupfs driver, a folder is called podUID; with the
// systemd driver, kubepods-QOS-podUID.slice, with underscores in the UID. What is above may be hidden behind "..", and pods may
// nest.
func podsOf(cgroup string) []string {
	var uids []string
	for folder := range strings.FieldsFuncSeq(cgroup, func(r rune) bool { return r == '/' || r == '\n' }) {
		name, slice := strings.CutSuffix(folder, ".slice")
		if slice {
			name = name[strings.LastIndexByte(name, '-')+1:]
		}
		if uid, ok := strings.CutPrefix(name, "pod"); ok && !slices.Contains(uids, normal(uid)) {
			uids = append(uids, normal(uid))
		}
	}
	return uids
}

func normal(uid string) string { return strings.ReplaceAll(uid, "_", "-") }

// identify returns the ID of a namespace, as netns.Pod.ID does.
func identify(path string) (string, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d-%d", stat.Dev, stat.Ino), nil
}
