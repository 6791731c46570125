package machine

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/detour-cni/detour/pkg/nettest"
)

func TestMain(m *testing.M) {
	if IsInit() {
		os.Exit(Init())
	}
	os.Exit(m.Run())
}

// start boots a machine for a test, which needs the same right as a network namespace does.
func start(t *testing.T, disk string) *Machine {
	t.Helper()
	nettest.RequireNetns(t)
	m, err := Start("tested", disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

func shell(t *testing.T, m *Machine, script string) string {
	t.Helper()
	out, err := m.Command(t.Context(), "sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestWhatAMachineWritesIsOnItsDiskOrGone(t *testing.T) {
	disk := t.TempDir()
	m := start(t, disk)
	const files = "/etc/detour-e2e /opt/detour-e2e /var/lib/detour-e2e /run/detour-e2e /tmp/detour-e2e"
	shell(t, m, "touch "+files)
	boot := shell(t, m, "cat /proc/sys/kernel/random/boot_id")
	m.Kill()
	for file := range strings.FieldsSeq(files) {
		if _, err := os.Stat(file); err == nil {
			t.Errorf("%s is on the host", file)
		}
	}
	m = start(t, disk)
	if got, want := shell(t, m, "ls "+files+" 2>/dev/null || :"), "/etc/detour-e2e\n/opt/detour-e2e\n/var/lib/detour-e2e"; got != want {
		t.Errorf("after another start there is %q, want %q", got, want)
	}
	if got := shell(t, m, "cat /proc/sys/kernel/random/boot_id"); got == boot || got != m.BootID() {
		t.Errorf("the boot ID is %s, was %s, want %s", got, boot, m.BootID())
	}
}

func TestAMachineHasItsOwnSysctlsNetworkAndProcesses(t *testing.T) {
	m := start(t, t.TempDir())
	before, err := os.ReadFile("/proc/sys/kernel/panic")
	if err != nil {
		t.Fatal(err)
	}
	shell(t, m, "echo 77 >/proc/sys/kernel/panic")
	if now, err := os.ReadFile("/proc/sys/kernel/panic"); err != nil || string(now) != string(before) {
		t.Errorf("the host's kernel/panic is %q, was %q (%v)", now, before, err)
	}
	for script, want := range map[string]string{
		"cat /proc/sys/kernel/panic": "77",
		"hostname":                   "tested",
		"cat /proc/1/cmdline | tr '\\0' ' ' | cut -d' ' -f2": initCommand,
	} {
		if got := shell(t, m, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	for _, ns := range namespaces {
		host, err := os.Readlink("/proc/self/ns/" + ns.name)
		if err != nil {
			t.Fatal(err)
		}
		if got := shell(t, m, "readlink /proc/self/ns/"+ns.name); got == host {
			t.Errorf("the namespace %s is the host's", ns.name)
		}
	}
}

func TestNothingOfAKilledMachineIsLeft(t *testing.T) {
	before, err := TakeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := start(t, filepath.Join(dir, "disk"))
	p, err := m.StartProcess(filepath.Join(dir, "log"), nil, "sh", "-c", "trap '' TERM; sleep 1000 & echo started; wait")
	if err != nil {
		t.Fatal(err)
	}
	shell(t, m, "mkdir -p /run/netns && ip netns add one && ip link add veth0 type veth peer name eth0 netns one && mount -t tmpfs none /var/lib")
	command := m.NetCommand(t.Context(), "sleep", "1000")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	m.Kill()
	<-p.Ended()
	_ = command.Wait() // killed, as it should be
	if leaks, err := Leaks(before, dir, m); err != nil || leaks != nil {
		t.Errorf("left: %q, %v", leaks, err)
	}
}

func TestACommandEndsWithItsContext(t *testing.T) {
	m := start(t, t.TempDir())
	ctx, stop := context.WithCancel(t.Context())
	cmd := m.Command(ctx, "sh", "-c", "echo started; sleep 1000")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well")
	}
	// What is killed takes a moment to be gone.
	for deadline := time.Now().Add(endTime); ; time.Sleep(endTime / 100) {
		got := shell(t, m, "cat /proc/[0-9]*/comm")
		if !strings.Contains(got, "sleep") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are %q", got)
		}
	}
}

func TestLeaksAreFound(t *testing.T) {
	dir := t.TempDir()
	m := start(t, filepath.Join(dir, "disk"))
	before, err := TakeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	// A process that has the machine's network alone survives it.
	stays := exec.Command("nsenter", "--net="+m.namespace("net"), "sh", "-c", "echo in; exec sleep 1000")
	out, err := stays.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := stays.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = stays.Process.Kill()
		_ = stays.Wait()
	}()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir+"/disk/opt", dir+"/disk/var", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir+"/disk/var", 0); err != nil {
			t.Error(err)
		}
	}()
	m.Kill()
	leaks, err := Leaks(before, dir, m)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(leaks, "\n")
	for _, want := range []string{"in namespace net of machine tested", "mount ", "/disk/var"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in %q", want, all)
		}
	}
}
