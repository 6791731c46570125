package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/backend"
)

// Runtime is the process that starts the plugin. The plugin inherits its PATH, its rights and its file system.
type Runtime struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
	Path string `json:"path"` // the environment variable
}

// runtimes are the processes that start CNI plugins, by the kernel's name for them.
var runtimes = []string{"containerd", "crio", "cri-dockerd"}

// findRuntime finds the node's runtime: of several, the one that has this process's network namespace, as a runtime is in the host's.
// It is nil if there is none.
func findRuntime(pid int) (*Runtime, error) {
	if pid != 0 {
		return readRuntime(pid)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, err
	}
	for _, path := range processes {
		name, err := os.ReadFile(path)
		if err != nil || !slices.Contains(runtimes, strings.TrimSpace(string(name))) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if same(fmt.Sprintf("/proc/%d/ns/net", pid), "/proc/self/ns/net") {
			return readRuntime(pid)
		}
	}
	return nil, nil
}

func same(a, b string) bool {
	infoA, err := os.Stat(a)
	infoB, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(infoA, infoB)
}

func readRuntime(pid int) (*Runtime, error) {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return nil, fmt.Errorf("read process %d: %w", pid, err)
	}
	r := &Runtime{PID: pid, Name: strings.TrimSpace(string(name))}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, fmt.Errorf("read the environment of %s (PID %d): %w", r.Name, pid, err)
	}
	for variable := range strings.SplitSeq(string(environment), "\x00") {
		if path, ok := strings.CutPrefix(variable, "PATH="); ok {
			r.Path = path
		}
	}
	return r, nil
}

// The capabilities that the plugin needs: to enter a network namespace, and to program it.
var capabilities = []struct {
	name   string
	number int
}{{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_NET_ADMIN", unix.CAP_NET_ADMIN}}

// checkRuntime says whether what holds for this process holds for the plugin too.
func checkRuntime(r *Runtime, err error) Check {
	c := Check{Name: CheckRuntime, Result: Unknown}
	switch {
	case err != nil:
		c.Found, c.Do = err.Error(), "run detourctl as root, in the host's PID namespace"
		return c
	case r == nil:
		c.Result = Limited
		c.Found = "no process is called " + strings.Join(runtimes, ", ") + ": PATH and rights are those of detourctl, not the runtime's"
		c.Do = "name the runtime's process by --runtime-pid, if there is one"
		return c
	}
	c.Found = fmt.Sprintf("%s (PID %d), PATH %s", r.Name, r.PID, r.Path)
	proc := fmt.Sprintf("/proc/%d/", r.PID)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		c.Found, c.Do = err.Error(), "run detourctl as root"
		return c
	}
	effective, _ := strconv.ParseUint(field(status, "CapEff"), 16, 64)
	for _, needed := range capabilities {
		if effective>>needed.number&1 == 0 {
			c.Result = Wrong
			c.Found += "; it has no " + needed.name
			c.Do = "give it to the runtime's service (CapabilityBoundingSet)"
			return c
		}
	}
	switch {
	case !same("/", proc+"root"):
		c.Found += "; it has another root folder"
		c.Do = fmt.Sprintf("run `detourctl doctor --root /proc/%d/root`", r.PID)
	case field(status, "Seccomp") == "2":
		c.Found += "; a seccomp filter holds for it, and detourctl runs without"
		c.Do = "look whether the filter of the runtime's service (SystemCallFilter) lets setns, socket and execve pass"
	default:
		c.Result = Fine
	}
	return c
}

// field is one of /proc/PID/status.
func field(status []byte, name string) string {
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// checkIPTables lists the programs of iptables; what they are good for is in the features.
func checkIPTables(ctx context.Context) Check {
	c := Check{Name: CheckIPTables, Result: Fine}
	var all []string
	for _, f := range backend.FindIPTables(ctx) {
		if f.Err != nil {
			c.Result, c.Do = Limited, "repair or remove the program; detour takes another, or nftables"
			all = append(all, f.Err.Error())
			continue
		}
		all = append(all, fmt.Sprintf("%s is %s", f.Path, f.Version))
	}
	c.Found = strings.Join(all, "; ")
	if all == nil {
		c.Found = fmt.Sprintf("no iptables-restore is on PATH (%s)", os.Getenv("PATH")) //nolint:forbidigo // which Run has set
	}
	return c
}

// checkIPv6 says whether pods can have IPv6, in the calling thread's namespace, which is new.
func checkIPv6() (c Check, ok bool) {
	c = Check{Name: CheckIPv6, Result: Fine}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	off, sysctlErr := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	switch {
	case errors.Is(err, unix.EAFNOSUPPORT):
		c.Found = "the kernel has no IPv6 (ipv6.disable=1, or no module ipv6): no pod has an IPv6 address"
		return c, false
	case err != nil:
		c.Result, c.Found = Unknown, fmt.Sprintf("IPv6 sockets are denied: %v", err)
		c.Do = "look for the seccomp filter that denies them: rules for pods with IPv6 addresses can't be tried"
		return c, false
	case errors.Is(sysctlErr, fs.ErrNotExist):
		c.Found = "there is IPv6, but no /proc/sys/net/ipv6"
	case strings.TrimSpace(string(off)) == "1":
		c.Found = "net.ipv6.conf.all.disable_ipv6 is 1 in a new network namespace: pods have no IPv6 address unless their network turns it on"
	default:
		c.Found = "new network namespaces have IPv6"
	}
	return c, true
}

// The share of connections, in percent, at which there is hardly any room.
const fullAt = 90

// checkConntrack says whether there is room for more connections: without, the kernel drops the first packet of each.
func checkConntrack() Check {
	c := Check{Name: CheckConntrack, Result: Fine}
	count, err := readNumber("/proc/sys/net/netfilter/nf_conntrack_count")
	limit, err2 := readNumber("/proc/sys/net/netfilter/nf_conntrack_max")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Found = "connection tracking is not loaded yet"
	case err != nil || err2 != nil:
		c.Result, c.Found = Unknown, errors.Join(err, err2).Error()
	default:
		c.Found = fmt.Sprintf("%d of %d connections", count, limit)
		if limit > 0 && count*100 >= limit*fullAt {
			c.Result, c.Do = Limited, "raise net.netfilter.nf_conntrack_max: the kernel drops new connections once it is reached"
		}
	}
	return c
}

func readNumber(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}
