package verify

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is a process of the pod.
type process struct {
	pid       int
	name      string
	uid, gid  uint32 // those that its sockets get
	container string // the ID in its control group's path, "" if there is none
	sockets   []uint64
}

// processes reads the processes; it leaves out those that have ended. seen is false if not all of their sockets may be looked at.
func processes(proc string, pids []int) (all []process, seen bool) {
	seen = true
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		p := process{pid: pid}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) > 1 && fields[0] == "Name:":
				p.name = strings.Join(fields[1:], " ")
			case len(fields) == 5 && fields[0] == "Uid:": // real, effective, saved, filesystem
				p.uid = number(fields[4])
			case len(fields) == 5 && fields[0] == "Gid:":
				p.gid = number(fields[4])
			}
		}
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		p.container = containerOf(string(cgroup))
		var ok bool
		p.sockets, ok = socketsOf(filepath.Join(dir, "fd"))
		seen = seen && ok
		all = append(all, p)
	}
	return all, seen
}

func number(text string) uint32 {
	n, _ := strconv.ParseUint(text, 10, 32)
	return uint32(n)
}

// socketsOf returns the inodes of a process's sockets, from its folder fd. ok is false if not all files may be looked at.
func socketsOf(dir string) (inodes []uint64, ok bool) {
	gone := func(err error) bool { return err == nil || errors.Is(err, fs.ErrNotExist) }
	files, err := os.ReadDir(dir)
	ok = gone(err)
	for _, f := range files {
		file, err := os.Readlink(filepath.Join(dir, f.Name()))
		ok = ok && gone(err)
		inode, isSocket := strings.CutPrefix(file, "socket:[")
		if n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64); isSocket && err == nil {
			inodes = append(inodes, n)
		}
	}
	return inodes, ok
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
func listening(all []process, s socket) (process, bool) {
	i := slices.IndexFunc(all, func(p process) bool { return slices.Contains(p.sockets, s.inode) })
	if i < 0 {
		return process{}, false
	}
	return all[i], true
}

func (p process) String() string { return fmt.Sprintf("%s (PID %d)", p.name, p.pid) }
