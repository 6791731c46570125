package sockets

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is a process that may hold sockets.
type Process struct {
	PID     int      `json:"pid"`
	Name    string   `json:"name"`
	UID     uint32   `json:"-"` // this and GID are those that the kernel's owner match compares
	GID     uint32   `json:"-"`
	Sockets []uint32 `json:"-"` // the inodes of those that it holds
}

// Processes reads processes from proc, such as "/proc". It leaves out those that have ended. seen is false if not all of their
// sockets may be looked at.
func Processes(proc string, pids []int) (all []Process, seen bool) {
	seen = true
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue
		}
		p := Process{PID: pid}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) > 1 && fields[0] == "Name:":
				p.Name = strings.Join(fields[1:], " ")
			case len(fields) == 5 && fields[0] == "Uid:": // real, effective, saved, filesystem
				p.UID = number(fields[4])
			case len(fields) == 5 && fields[0] == "Gid:":
				p.GID = number(fields[4])
			}
		}
		var ok bool
		p.Sockets, ok = held(filepath.Join(dir, "fd"))
		seen = seen && ok
		all = append(all, p)
	}
	return all, seen
}

func number(text string) uint32 {
	n, _ := strconv.ParseUint(text, 10, 32)
	return uint32(n)
}

// held returns the inodes of a process's sockets, from its folder fd. ok is false if not all files may be looked at.
func held(dir string) (inodes []uint32, ok bool) {
	gone := func(err error) bool { return err == nil || errors.Is(err, fs.ErrNotExist) }
	files, err := os.ReadDir(dir)
	ok = gone(err)
	for _, f := range files {
		file, err := os.Readlink(filepath.Join(dir, f.Name()))
		ok = ok && gone(err)
		inode, isSocket := strings.CutPrefix(file, "socket:[")
		if n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 32); isSocket && err == nil {
			inodes = append(inodes, uint32(n))
		}
	}
	return inodes, ok
}
