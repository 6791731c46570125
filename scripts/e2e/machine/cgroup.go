package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// cgroupsRoot is where cgroup hierarchies are mounted: one of version 2, or some of version 1 in folders.
const cgroupsRoot = "/sys/fs/cgroup"

const cgroupPrefix = "detour-e2e-"

// Cgroup is a cgroup of the same name in each hierarchy: the one thing of a machine that is the host's.
type Cgroup struct{ name string }

// NewCgroup creates a cgroup of this process for a machine, and removes those of processes that were killed.
func NewCgroup(machine string) (Cgroup, error) {
	c := Cgroup{fmt.Sprintf("%s%d-%s", cgroupPrefix, os.Getpid(), machine)}
	if err := errors.Join(removeStale(), c.create()); err != nil {
		return c, fmt.Errorf("create cgroup %s: %w", c.name, err)
	}
	return c, nil
}

// Path is what a kubelet wants as its cgroupRoot.
func (c Cgroup) Path() string { return "/" + c.name }

// Remove removes the cgroup and those in it. Their processes must have ended or be about to.
func (c Cgroup) Remove() error {
	var errs []error
	for _, hierarchy := range hierarchies() {
		errs = append(errs, removeCgroup(filepath.Join(hierarchy, c.name)))
	}
	return errors.Join(errs...)
}

func hierarchies() []string {
	if _, err := os.Stat(filepath.Join(cgroupsRoot, "cgroup.procs")); err == nil {
		return []string{cgroupsRoot}
	}
	found, _ := filepath.Glob(filepath.Join(cgroupsRoot, "*", "cgroup.procs")) // the pattern is right
	for i := range found {
		found[i] = filepath.Dir(found[i])
	}
	return found
}

// removeStale removes cgroups of processes that are no more.
func removeStale() error {
	var errs []error
	for _, hierarchy := range hierarchies() {
		paths, _ := filepath.Glob(filepath.Join(hierarchy, cgroupPrefix+"*")) // the pattern is right
		for _, path := range paths {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), cgroupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
				errs = append(errs, removeCgroup(path))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a folder of folders, the inner ones first; the files in them aren't to be removed. A cgroup is busy
// for a moment after its last process has ended.
func removeCgroup(path string) error {
	var inner []string
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			inner = append(inner, path)
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	slices.Reverse(inner)
	deadline := time.Now().Add(30 * time.Second)
	for _, folder := range inner {
		for err = os.Remove(folder); errors.Is(err, syscall.EBUSY) && time.Now().Before(deadline); err = os.Remove(folder) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Renew removes what is in the cgroup.
func (c Cgroup) Renew() error {
	if err := c.Remove(); err != nil {
		return err
	}
	return c.create()
}

func (c Cgroup) create() error {
	var errs []error
	for _, hierarchy := range hierarchies() {
		errs = append(errs, os.MkdirAll(filepath.Join(hierarchy, c.name), 0o755))
	}
	return errors.Join(append(errs, delegate())...)
}

// delegate lets cgroups have the controllers that a kubelet wants, where that isn't so already: version 1 has no such thing.
func delegate() error {
	available, err := os.ReadFile(filepath.Join(cgroupsRoot, "cgroup.controllers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for controller := range strings.FieldsSeq(string(available)) {
		if slices.Contains([]string{"cpu", "cpuset", "hugetlb", "memory", "pids"}, controller) {
			err = errors.Join(err, os.WriteFile(filepath.Join(cgroupsRoot, "cgroup.subtree_control"), []byte("+"+controller), 0))
		}
	}
	return err
}
