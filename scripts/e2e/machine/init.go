package machine

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// initCommand is the argument with which the program, started once more, is a machine's first process.
const initCommand = "machine-init"

const readyLine = "ready"

// IsInit reports whether this process was started as a machine's first: it then has to end with the code of Init.
func IsInit() bool { return len(os.Args) == 5 && os.Args[1] == initCommand }

// Init is the machine's first process. It makes the machine's own mounts and then only waits until standard input ends,
// as it does once the program that started the machine has ended for any reason.
func Init() int {
	signal.Ignore(syscall.SIGCHLD) // the kernel then reaps orphans by itself
	if err := setUp(os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintf(os.Stderr, "machine %s: %v\n", os.Args[2], err)
		return 1
	}
	fmt.Println(readyLine)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// mount is an argument list of mount(2).
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// folders are what a disk holds.
var folders = []string{"etc", "etc.work", "opt", "var/lib", "var/log", "var/tmp"}

// mounts are the machine's own, in their order.
func mounts(disk string) []mount {
	etc := fmt.Sprintf("lowerdir=/etc,upperdir=%[1]s/etc,workdir=%[1]s/etc.work", disk)
	return []mount{
		{target: "/", flags: unix.MS_REC | unix.MS_PRIVATE}, // from here on nothing is seen by the host
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"overlay", "/etc", "overlay", 0, etc}, // iptables and others are links into /etc/alternatives
		{disk + "/opt", "/opt", "", unix.MS_BIND, ""},
		{disk + "/var", "/var", "", unix.MS_BIND, ""},
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{target: "/", flags: unix.MS_REC | unix.MS_SHARED}, // as systemd does, for volumes with mountPropagation
	}
}

// sysctls are those that a kubelet sets and that network namespaces don't separate: it gets files instead.
var sysctls = []string{
	"kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys", "kernel/panic", "kernel/panic_on_oops",
	"vm/overcommit_memory", "vm/panic_on_oom",
}

func setUp(name, disk, bootID string) error {
	if err := makeDisk(disk); err != nil {
		return err
	}
	for _, m := range mounts(disk) {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := fakeSysctl("kernel/random/boot_id", bootID+"\n"); err != nil {
		return err
	}
	for _, name := range sysctls {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err == nil {
			err = fakeSysctl(name, string(value))
		}
		if err != nil {
			return err
		}
	}
	return unix.Sethostname([]byte(name))
}

func makeDisk(disk string) error {
	for _, folder := range folders {
		if err := os.MkdirAll(filepath.Join(disk, folder), 0o755); err != nil {
			return err
		}
	}
	err := os.Symlink("/run", filepath.Join(disk, "var/run"))
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

func fakeSysctl(name, value string) error {
	file := filepath.Join("/run/sysctl", strings.ReplaceAll(name, "/", "."))
	return errors.Join(
		os.MkdirAll(filepath.Dir(file), 0o755),
		os.WriteFile(file, []byte(value), 0o600),
		unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""),
	)
}

func newBootID() (string, error) {
	var b [16]byte
	_, err := rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), err
}
