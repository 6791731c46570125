package machine

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Snapshot is what the host has of the things that containers may leave behind.
type Snapshot struct{ things []string }

// TakeSnapshot lists the host's named network namespaces, and its links, that are called as container runtimes and CNI
// plugins call them. Others may work on the same host with names of their own.
func TakeSnapshot() (Snapshot, error) {
	var s Snapshot
	names, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	for _, name := range names {
		if strings.HasPrefix(name.Name(), "cni-") {
			s.things = append(s.things, "network namespace "+name.Name())
		}
	}
	links, err := net.Interfaces()
	for _, link := range links {
		for _, prefix := range []string{"veth", "cni", "kube"} {
			if strings.HasPrefix(link.Name, prefix) {
				s.things = append(s.things, "link "+link.Name)
			}
		}
	}
	return s, err
}

// endTime is how long a process may take to end.
const endTime = 10 * time.Second

// Leaks names what is left on the host after machines with disks in dir were killed: processes in their namespaces, mounts
// of their disks, and network namespaces and links that were not there before. If there is anything, it looks again for
// a while.
func Leaks(before Snapshot, dir string, machines ...*Machine) ([]string, error) {
	for deadline := time.Now().Add(endTime); ; time.Sleep(endTime / 100) {
		leaks, err := leaksNow(before, dir, machines)
		if err != nil || leaks == nil || time.Now().After(deadline) {
			return leaks, err
		}
	}
}

func leaksNow(before Snapshot, dir string, machines []*Machine) ([]string, error) {
	var leaks []string
	for _, m := range machines {
		leaks = append(leaks, m.processes()...)
	}
	mounts, err := mountsBelow(dir)
	if err != nil {
		return nil, err
	}
	after, err := TakeSnapshot()
	if err != nil {
		return nil, err
	}
	for _, thing := range after.things {
		if !slices.Contains(before.things, thing) {
			leaks = append(leaks, thing)
		}
	}
	return append(leaks, mounts...), nil
}

// processes names the processes that are in a namespace of the machine, which thereby lives on.
func (m *Machine) processes() []string {
	var found []string
	for _, ns := range namespaces {
		links, _ := filepath.Glob("/proc/[0-9]*/ns/" + ns.name) // the pattern is right
		for _, link := range links {
			if id, err := os.Readlink(link); err == nil && id == m.ids[ns.name] { // an error: it has ended
				found = append(found, fmt.Sprintf("process %s in namespace %s of machine %s", strings.Split(link, "/")[2], ns.name, m.name))
			}
		}
	}
	return found
}

// mountsBelow names the mounts of this process's mount namespace that are below dir or show something that is.
func mountsBelow(dir string) ([]string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var found []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if strings.Contains(lines.Text(), dir+"/") {
			found = append(found, "mount "+lines.Text())
		}
	}
	return found, lines.Err()
}
